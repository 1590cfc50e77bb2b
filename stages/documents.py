"""The files of artifacts: JSON and Parquet, written in one spelling and read back typed.

What cannot be read, or does not say what it should, is a DataError of one line that names the artifact and the file.
"""

import json
import types
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from stages.errors import DataError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

Typed = TypeVar("Typed")

_SCALARS: dict[object, tuple[type, ...]] = {str: (str,), bool: (bool,), int: (int,), float: (float, int)}


def write_json(path: Path, value: Any, *, indent: int = 1, ascii_only: bool = True) -> None:
    """``value`` with keys in the order given; ValueError for a number that JSON has no word for."""
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=ascii_only)
    path.write_text(f"{text}\n", encoding="utf-8")


def read_json(path: Path, kind: type[Typed], artifact: str | None = None) -> Typed:
    """The document at ``path`` as ``kind`` (see ``typed``); errors name ``artifact``, by default its directory."""
    try:
        return typed(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, artifact, one_line(error)) from error


def typed(kind: type[Typed], value: Any) -> Typed:
    """Plain data as ``kind``: a dataclass, ``X | Y``, ``list[X]``, ``dict[str, X]``, a scalar or Any.

    A field that has a default may be absent, as in a document of an older version; what ``kind`` does not know is left
    out.  Raises KeyError for what is absent, TypeError for what is of another type.
    """
    return cast(Typed, _typed(kind, value))


def write_table(path: Path, table: "pa.Table") -> None:
    """Parquet, compressed."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd")


def read_table(path: Path, columns: Sequence[str] | None = None, artifact: str | None = None) -> "pa.Table":
    """The table at ``path``, or those of its ``columns``, every one of which must be there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    asked = None if columns is None else list(columns)
    try:
        missing = set(asked or ()) - set(pq.read_schema(path).names)
        if not missing:
            return pq.read_table(path, columns=asked, partitioning=None, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, artifact, one_line(error)) from error
    raise _unreadable(path, artifact, f"it lacks {', '.join(sorted(missing))}")


def plain_columns(kind: Any) -> dict[str, "pa.DataType"]:
    """The columns of a table with a row for each ``kind``, a dataclass of lists and of scalars that may be None."""
    hints = get_type_hints(kind)
    return {each.name: _column_type(hints[each.name]) for each in fields(kind)}


def _column_type(hint: Any) -> "pa.DataType":
    import pyarrow as pa

    if get_origin(hint) is list:
        return pa.list_(_column_type(*get_args(hint)))
    return {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}[_scalar(hint)]


def _unreadable(path: Path, artifact: str | None, reason: str) -> DataError:
    return DataError(f"{artifact or path.parent.name}: {path.name} cannot be read ({reason}); delete it and run again")


def _typed(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        return _dataclass(kind, value)
    container, inner = get_origin(kind), get_args(kind)
    if container in (Union, types.UnionType):
        return _one_of([each for each in inner if each is not type(None)], value, may_be_none=type(None) in inner)
    if container is list:
        return [_typed(inner[0], each) for each in _checked(value, (list,))]
    if container is dict:
        return {name: _typed(inner[1], each) for name, each in _checked(value, (dict,)).items()}
    if kind is not Any and kind not in _SCALARS:
        raise NotImplementedError(f"documents are not read as {kind}")
    return value if kind is Any else _checked(value, _SCALARS[kind])


def _one_of(kinds: Sequence[Any], value: Any, may_be_none: bool) -> Any:
    """As the first of ``kinds`` that fits."""
    if value is None and may_be_none:
        return None
    for kind in kinds[:-1]:
        with suppress(TypeError, KeyError):
            return _typed(kind, value)
    return _typed(kinds[-1], value)


def _dataclass(kind: Any, value: Any) -> Any:
    known, hints = _checked(value, (dict,)), get_type_hints(kind)
    needed = [each.name for each in fields(kind) if each.name in known or not _has_default(each)]
    return kind(**{name: _typed(hints[name], known[name]) for name in needed})


def _has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _checked(value: Any, kinds: tuple[type, ...]) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"{value!r:.60} is not of type {kinds[0].__name__}")
    return value


def _scalar(hint: Any) -> type:
    (scalar,) = (each for each in get_args(hint) or (hint,) if each is not type(None))
    return cast(type, scalar)


def encodable(text: str) -> str:
    """With halves of characters, which JSON can spell and a file cannot hold, replaced: one costs nothing else."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
