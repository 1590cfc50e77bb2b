"""lm-eval's index of tasks, groups and tags, read from its YAML files alone.

lm-eval's own index costs 5 s of imports and 8 s of parsing shared includes again and again (14,000 files); reading
every file once takes 2 s, needs no import of lm-eval, and gives the same names, members and settings; ``kept_index.py``
keeps that.
"""

import importlib.util
import os
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from stages.errors import ConfigError
from stages.evaluate.kept_index import KeptIndex, kept

_IGNORED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}
_GROUP_FIELDS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata"}
_LABEL_FIELDS = {"task", "task_alias"}


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A ``!function module.name`` of a YAML file, not imported."""

    folder: Path
    spec: str

    @property
    def name(self) -> str:
        """The function's name inside its module."""
        return self.spec.rpartition(".")[2]

    @property
    def file(self) -> Path:
        """The Python file beside the YAML file that should define it."""
        return self.folder / f"{self.spec.rpartition('.')[0].replace('.', '/')}.py"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name of the index: a task, a group of names, or a tag (members that named it)."""

    name: str
    kind: str  # task, group or tag
    path: Path | None
    config: Mapping[str, Any]
    members: list[str] = field(default_factory=list)  # of a tag


Index = Mapping[str, Entry]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is 8 times faster
    folder: Path


_Loader.add_constructor("!function", lambda loader, node: FunctionRef(loader.folder, loader.construct_scalar(node)))


@cache
def lm_eval_tasks() -> Path:
    """Where those that lm-eval brings are."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "tasks"


def task_roots(include_paths: Sequence[str] = ()) -> list[Path]:
    """lm-eval's own tasks, ours, then the user's: a later root overrides an earlier one."""
    own = [lm_eval_tasks(), Path(__file__).parents[1] / "tasks"]
    return [*own, *(Path(path) for path in include_paths if Path(path).resolve() != own[1].resolve())]


def build_index(include_paths: Sequence[str] = ()) -> Index:
    """Every task, group and tag of lm-eval, of this package and of ``include_paths``."""
    of_lm_eval, *others = task_roots(include_paths)
    includes: dict[str, dict[str, Any]] = {}
    own = [_index_of(root, includes) for root in others]
    return ChainMap(*reversed(own), cast(dict[str, Entry], kept(of_lm_eval, lambda: _index_of(of_lm_eval, {}))))


def folders_of(index: Index) -> set[Path]:
    """Where its tasks and groups are."""
    parts = index.maps if isinstance(index, ChainMap) else [index]
    return {folder for part in parts for folder in _folders_of(part)}


def _folders_of(part: Index) -> set[Path]:
    if isinstance(part, KeptIndex):
        return set(map(Path, part.folders))
    return {entry.path.parent for entry in part.values() if entry.path is not None}


def expand(index: Index, name: str) -> dict[str, dict[str, Any]]:
    """Leaf tasks of ``name`` in lm-eval's order, each with the settings that groups lay over it.

    Raises ConfigError for a group whose members cannot be named alone (defined inside it, changed by a function, or
    named twice with other settings).
    """
    entry = index[name]
    if entry.kind == "task":
        return {name: {}}
    if entry.kind == "tag":
        return {member: {} for member in sorted(entry.members)}
    found: dict[str, dict[str, Any]] = {}
    for leaf, changed in _members(index, name, entry.config, {}):
        if found.setdefault(leaf, changed) != changed:
            raise ConfigError(
                f"group {name} has {leaf} twice, with other settings each: give each a task slot of its own, with "
                f"task: {leaf} and its settings under overrides or num_fewshot"
            )
    return found


def _index_of(root: Path, includes: dict[str, dict[str, Any]]) -> dict[str, Entry]:
    index: dict[str, Entry] = {}
    for path in map(Path, sorted(_yaml_files(root))):
        try:
            _add(index, path, _load(path, includes))
        except (yaml.YAMLError, OSError, ValueError, TypeError):
            continue  # lm-eval skips what it cannot read, too
    return index


def _yaml_files(root: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _IGNORED_FOLDERS]
        yield from (f"{folder}/{name}" for name in names if name.endswith(".yaml"))


def _add(index: dict[str, Entry], path: Path, config: dict[str, Any]) -> None:
    kind = "task" if "class" in config or "group" not in config else "group"
    name = config.get(kind)
    if not isinstance(name, str) or name in index:
        return
    index[name] = Entry(name, kind, path, config)
    if kind == "task":
        tags = config.get("tag") or []
        for tag in [tags] if isinstance(tags, str) else tags:
            index.setdefault(tag, Entry(tag, "tag", None, {})).members.append(name)


def _load(path: Path, includes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The file's settings over those of the files it includes."""
    own = _parse(path)
    merged: dict[str, Any] = {}
    named = own.pop("include", [])
    for name in [named] if isinstance(named, str) else named:
        include = os.path.normpath(path.parent / name)
        if include not in includes:
            includes[include] = _load(Path(include), includes)
        merged |= {key: value for key, value in includes[include].items() if key != "task_list"}
    return merged | own


def settings_of(path: Path) -> dict[str, Any]:
    """A file's settings as they are now, over those of the files it includes."""
    return _load(path, {})


def included_files(path: Path) -> list[Path]:
    """Every file that a task's file includes, directly or not."""
    own = _parse(path).get("include", [])
    named = [Path(os.path.normpath(path.parent / name)) for name in ([own] if isinstance(own, str) else own)]
    return [file for include in named for file in (include, *included_files(include))]


def _parse(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        loader = _Loader(stream)
        loader.folder = path.parent
        try:
            config = loader.get_single_data()
        finally:
            loader.dispose()
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings")
    return config


def _members(
    index: Index, group: str, config: Mapping[str, Any], outer: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    settings = {key: value for key, value in config.items() if key not in _GROUP_FIELDS} | outer
    items = config.get("task") or []
    for item in [items] if isinstance(items, str) else items:
        member = {"task": item} if isinstance(item, str) else item
        own = {key: value for key, value in member.items() if key not in ("task", "group")}
        if "group" in member and member["group"] not in index:
            yield from _members(index, f"{group}::{member['group']}", member, settings)
            continue
        name = member["group"] if "group" in member else member.get("task")
        if not isinstance(name, str) or name not in index:
            raise ConfigError(f"group {group} defines its member {name!r} inside itself; write it as a task of its own")
        yield from _laid_over(index, group, index[name], settings | own)


def _laid_over(
    index: Index, group: str, entry: Entry, settings: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if entry.kind == "group":
        yield from _members(index, entry.name, entry.config, settings)
        return
    plain = {key: value for key, value in settings.items() if key not in _LABEL_FIELDS | {"tag"}}
    if _has_function(plain):
        raise ConfigError(f"group {group} changes its members by a function; name the tasks themselves instead")
    for name in sorted(entry.members) if entry.kind == "tag" else [entry.name]:
        yield name, plain


def _has_function(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return isinstance(value, FunctionRef) or any(_has_function(part) for part in parts)
