"""The local files that a task is made of and reads, as far as its settings and its code say.

Those of lm-eval's own package are known by its version.  What code opens under a name that it puts together cannot be
told beforehand; ``opened.py`` looks at that when the task is loaded.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.evaluate.installed import is_installed
from stages.evaluate.task_code import class_constant, function_refs, modules, texts
from stages.evaluate.task_index import Entry, included_files, lm_eval_tasks

FILE_FORMATS = {"arrow", "csv", "json", "pandas", "parquet", "text", "webdataset", "xml"}  # no hub ids
_PATH = re.compile(r"[\w.~+ -]*[/.][\w./~+ -]*")
_MAX_PATH = 300
_OF_OTHERS = ("*.safetensors", "*.gguf", "pyvenv.cfg")  # beside what is no part of a task, and may be large


@dataclass(slots=True)
class Lookups:
    """Names and whether they are there, relative ones from this process's folder: what an answer rests on."""

    seen: dict[str, bool] = field(default_factory=dict)
    place: str | None = None  # this process's folder, where names were taken from there

    def absolute(self, name: str) -> str:
        if not Path(name).is_absolute():
            self.place = str(Path.cwd())
        return os.path.normpath(Path(name).absolute())

    def exists(self, name: str) -> bool:
        self.seen[name] = Path(name).exists()
        return self.seen[name]


def home_of(entry: Entry) -> Path | None:
    """The folder of a task that lm-eval does not bring: the version of another package is no part of an identity."""
    assert entry.path is not None
    return None if is_told_by_version(entry.path) else entry.path.parent


def is_told_by_version(path: Path) -> bool:
    """Whether lm-eval's version says what a file or folder of tasks is."""
    return path.is_relative_to(lm_eval_tasks()) and is_installed(path)


def task_files(
    entry: Entry,
    config: Mapping[str, Any],
    roots: Sequence[Path],
    task_folders: Iterable[Path],
    leave_out: Path | None,
    lookups: Lookups,
) -> list[str]:
    """Names of the files that a leaf task depends on beside those that lie directly in its home: whole, or patterns.

    ``task_folders`` hold tasks of their own, ``leave_out`` is the store: neither is a part of what lies above it.
    """
    assert entry.path is not None
    home = home_of(entry)
    packaged = [root for root in roots if is_installed(root) and not is_told_by_version(root)]
    code = [file for file in modules(function_refs(config), roots) if not _is_versioned(file, packaged)]
    files = [*map(str, included_files(entry.path)), *map(str, code), *data_names(config, lookups)]
    if home is not None:
        files += _named_in(config, (home,), lookups)
        files += _subfolders(home, set(task_folders), leave_out)
    files += [name for file in code for name in _named_in(texts(file), (file.parent,), lookups)]
    return list(dict.fromkeys(name for name in files if not _is_known(Path(name), home, packaged)))


def dataset_path(config: Mapping[str, Any]) -> str | None:
    """What the data set is asked for under, also where the task is a Python class."""
    path = class_constant(config["class"], "DATASET_PATH") if "class" in config else config.get("dataset_path")
    return path if isinstance(path, str) else None


def data_names(config: Mapping[str, Any], lookups: Lookups) -> list[str]:
    """What a task's data set is read from where that is no data set of the hub: absolute files, folders, patterns."""
    kwargs = config.get("dataset_kwargs") or {}
    path, folder = dataset_path(config), kwargs.get("data_dir")
    named = [name for text in _leaves(kwargs.get("data_files")) if (name := _local(text)) is not None]
    if "custom_dataset" in config or path is None:
        return [*_paths_in([kwargs, config.get("metadata")], lookups)]
    if path in FILE_FORMATS:
        start = Path(folder or "").expanduser()
        return [lookups.absolute(str(start / name)) for name in named or ([""] if folder else [])]
    if lookups.exists(path):
        whole = lookups.absolute(path)
        return [whole, *(os.path.normpath(Path(whole, name)) for name in named)]
    return [os.path.normpath(name) for name in (*named, *([folder] if folder else [])) if Path(name).is_absolute()]


def _local(name: str) -> str | None:
    """Without what says how it is read (``zip://*.json::``, ``file://``); None for what lies on another machine."""
    name = name.rpartition("::")[2].removeprefix("file://")
    return None if "://" in name else str(Path(name).expanduser())


def _named_in(value: Any, folders: Sequence[Path], lookups: Lookups) -> Iterator[str]:
    """Files that texts name from one of the folders or from here; a prompt in a file is named ``FILE:PROMPT``."""
    for text in _leaves(value):
        for name in (text, text.rpartition(":")[0]):
            if len(name) > _MAX_PATH or not _PATH.fullmatch(name):
                continue
            places = [str(folder / name) for folder in folders]
            if lookups.exists(name):
                places.append(lookups.absolute(name))
            yield from (os.path.normpath(place) for place in places if Path(place).is_file())


def _paths_in(value: Any, lookups: Lookups) -> Iterator[str]:
    """Files and folders that arguments of a function name."""
    for text in _leaves(value):
        name = str(Path(text).expanduser())
        is_path = len(name) <= _MAX_PATH and "/" in name.strip("/") and _PATH.fullmatch(name)
        if is_path and lookups.exists(name):
            yield lookups.absolute(name)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _leaves(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


def _subfolders(home: Path, task_folders: set[Path], leave_out: Path | None) -> Iterator[str]:
    """What lies below a task's home and belongs to no other task, nor to the store, a model or an environment."""
    others = task_folders | {file.parent for pattern in _OF_OTHERS for file in home.rglob(pattern)}
    yield from _own_below(home, others, leave_out)


def _own_below(folder: Path, others: set[Path], leave_out: Path | None) -> Iterator[str]:
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if child.name.startswith(".") or child.name == "__pycache__" or child in others:
            continue
        if leave_out is not None and leave_out.is_relative_to(child):
            continue
        if any(other.is_relative_to(child) for other in others):
            yield from (str(path) for path in sorted(child.iterdir()) if path.is_file())
            yield from _own_below(child, others, leave_out)
        elif any(path.is_file() for path in child.rglob("*")):
            yield str(child)


def _is_known(path: Path, home: Path | None, packaged: Sequence[Path]) -> bool:
    """Whether the digest of the home or the version of a package says what is in it."""
    return _is_versioned(path, packaged) or (path.parent == home and path.is_file())


def _is_versioned(path: Path, packaged: Sequence[Path]) -> bool:
    """Of tasks that a package brings, below one of ``packaged``, no version says anything."""
    return is_installed(path) and not any(path.is_relative_to(root) for root in packaged)
