"""What a leaf task is known by: one identity of what makes its prompts, and one of all that it is.

Of a task that lm-eval brings both are lm-eval's version, and a digest of the local files that it reads.  Any other is
known by the files of its folder and by what it reads as well.  Of those the prompts' identity takes settings and Python
modules as far as prompts depend on them, so that who changes a scorer asks no model again.
"""

import ast
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from stages.errors import DataError
from stages.evaluate.config import SCORING_SETTINGS
from stages.evaluate.task_code import function_refs
from stages.evaluate.task_effects import is_opaque, names_code
from stages.evaluate.task_files import home_of
from stages.evaluate.task_index import Entry, FunctionRef, included_files, settings_of
from stages.evaluate.task_slices import is_deep, live, module_name, plain, reached, texts_in, trees, without_imports
from stages.local_files import Parts, files_in, found, local_identity

_NO_PROMPTS = SCORING_SETTINGS | {"task_alias", "tag"}
_MORE_REQUESTS = "acc_mutual_info"  # the one metric for which lm-eval asks more


@dataclass(frozen=True, slots=True)
class Identities:
    """Of one leaf."""

    prompts: Parts = Parts()
    whole: Parts = Parts()


def identities(entry: Entry, overrides: Mapping[str, Any], reads: Sequence[str]) -> Identities:
    """``overrides`` lie over the task's own settings; ``reads`` names the files that it depends on outside its home."""
    home = home_of(entry)
    if home is None or entry.path is None:
        return Identities()
    config = {**settings_of(entry.path), **overrides}
    return _Leaf(entry.path, home, config, reads).identities()


def check_unchanged(entry: Entry, planned: str, reads: Sequence[str], parts: Callable[[], Parts]) -> None:
    """What the plan has digested must be what is read here.  Raises DataError."""
    home = home_of(entry)
    if "+" in planned and planned.partition("+")[2] != local_identity(home, parts(), reads).removeprefix("+"):
        places = [*([str(home)] if home else []), *reads]
        raise DataError(
            f"task {entry.name}: what it reads ({', '.join(places)[:300]}) changed after the plan was made, or is "
            "another on this machine; start again"
        )


class _Leaf:
    """A task of its own home, and the files that it may be made of."""

    def __init__(self, path: Path, home: Path, config: Mapping[str, Any], reads: Sequence[str]) -> None:
        self._config = config
        self._home = os.path.realpath(home)
        files = [*files_in(home), *(file for name in reads for file in found(name))]
        self._files = list(dict.fromkeys(Path(os.path.realpath(file)) for file in files))
        self._own = _real([path, *included_files(path)])
        self._siblings = _siblings(home) - self._own
        self._known = trees(file for file in self._files if file.suffix == ".py")
        self._modules = {file: self._known[file] for file in self._reached(config)}

    def identities(self) -> Identities:
        """A task that is a Python class stays whole: what it asks and how it scores is one."""
        if any(map(is_deep, self._modules.values())):
            return Identities()
        everything = [node for tree in self._modules.values() for node in tree.body]
        texts = [*_strings(self._config), *texts_in(everything)]
        hides = is_opaque(everything) or any(map(names_code, _strings(self._config)))
        whole = Parts("", () if hides else self._apart(self._siblings, texts))
        return Identities(whole if "class" in self._config else self._prompts(), whole)

    def _reached(self, settings: Mapping[str, Any]) -> list[Path]:
        references = list(function_refs(settings))
        starts = [file for file in self._known if any(_is_of(reference, file) for reference in references)]
        return reached(starts, self._known)

    def _prompts(self) -> Parts:
        settings = {name: value for name, value in sorted(self._config.items()) if name not in _NO_PROMPTS}
        kept = self._kept(settings)
        statements = [node for nodes in kept.values() for node in nodes]
        asks_more = any(_metric(item) == _MORE_REQUESTS for item in self._config.get("metric_list") or [])
        if is_opaque(statements) or any(map(names_code, _strings(settings))):
            return Parts(_digest([_plain_settings(settings), asks_more]))
        code = [[self._place(file), [plain(node) for node in nodes]] for file, nodes in kept.items() if nodes]
        apart = self._siblings | self._own | set(self._modules)
        texts = [*_strings(settings), *texts_in(statements)]
        return Parts(_digest([_plain_settings(settings), asks_more, code]), self._apart(apart, texts))

    def _kept(self, settings: Mapping[str, Any]) -> dict[Path, list[ast.stmt]]:
        """What matters to prompts, of all modules: lm-eval loads those of scorers, too, before it asks."""
        names = {part for reference in function_refs(settings) for part in reference.spec.split(".")}
        own = self._reached(settings)
        kept = live(self._modules, names)
        return {file: nodes if file in own else without_imports(nodes) for file, nodes in kept.items()}

    def _apart(self, files: set[Path], texts: Sequence[str]) -> tuple[str, ...]:
        """Without those that settings or code name, which may be read for what is in them."""
        return tuple(sorted(str(file) for file in files if not any(_names(text, file) for text in texts)))

    def _place(self, file: Path) -> str:
        return os.path.relpath(file, self._home) if file.is_relative_to(self._home) else file.name


def _names(text: str, file: Path) -> bool:
    """Whether a text names a file; one without an ending could be any word of a sentence."""
    return file.name in text if file.suffix else file.name in re.split("[/:]", text)


def _siblings(home: Path) -> set[Path]:
    """The files that define tasks and groups in a folder, and those that these include."""
    files = files_in(home)
    return _siblings_among(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=64)
def _siblings_among(stamps: tuple[tuple[Path, int, int], ...]) -> set[Path]:
    return _real([each for file, *_ in stamps if file.suffix == ".yaml" for each in _defining(file)])


def _defining(path: Path) -> tuple[Path, ...]:
    try:
        defines = {"task", "group", "class"} & settings_of(path).keys()
        return (path, *included_files(path)) if defines else ()
    except (yaml.YAMLError, OSError, ValueError, TypeError):
        return ()  # defines nothing that lm-eval could read


def _is_of(reference: FunctionRef, file: Path) -> bool:
    """A module beside the YAML file, or one that is found on Python's path."""
    own = Path(os.path.realpath(reference.file))
    module = reference.spec.split(".")[-2:-1]
    return file == own if own.is_file() else [module_name(file)] == module


def _real(files: Sequence[Path]) -> set[Path]:
    return {Path(os.path.realpath(file)) for file in files}


def _metric(item: Any) -> Any:
    return item.get("metric") if isinstance(item, Mapping) else item


def _plain_settings(value: Any) -> Any:
    if isinstance(value, FunctionRef):
        return {"!function": value.spec}
    if isinstance(value, Mapping):
        return [[repr(key), _plain_settings(part)] for key, part in value.items()]  # in their order, which may count
    if isinstance(value, list | tuple):
        return [_plain_settings(part) for part in value]
    return value if isinstance(value, str) else [type(value).__name__, repr(value)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(part)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
