"""Garbage collection: artifacts that no sweep of the store refers to any more."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.plan import Plan
from pipeline.step import StepRef
from pipeline.store import MANIFEST, Store, is_set_aside, read_manifest


@dataclass(frozen=True, slots=True)
class Unused:
    """One directory that nothing needs."""

    path: Path
    num_bytes: int


def collect(store: Store, plan: Plan, delete: bool) -> list[Unused]:
    """What neither a recorded sweep nor ``plan`` refers to, damaged artifacts included; removed with ``delete``.

    Everything that a used artifact was made from counts as used.  Drafts are left to their owners.
    """
    used = _used(store, plan)
    unused = [
        Unused(path, _num_bytes(path))
        for path in sorted(store.root.glob("*/*/"))
        if path not in used and ((path / MANIFEST).exists() or is_set_aside(path))
    ]
    if delete:
        for each in unused:
            shutil.rmtree(each.path)
    return unused


def _used(store: Store, plan: Plan) -> set[Path]:
    wanted = set(plan.steps) | set(_recorded(store))
    paths, seen = set(), set()
    while wanted:
        seen.add(ref := wanted.pop())
        if (path := store.find(ref)) is not None:
            paths.add(path)
            wanted |= set(_refs(read_manifest(path)["inputs"])) - seen
    return paths


def _recorded(store: Store) -> Iterator[StepRef]:
    """Every step that a record of a sweep names."""
    for record in sorted((store.root / "sweeps").glob("*.json")):
        yield from _refs(json.loads(record.read_text(encoding="utf-8")))


def _refs(value: object) -> Iterator[StepRef]:
    """Every ``[stage, fingerprint]`` in a piece of JSON."""
    match value:
        case [str(stage), str(fingerprint)] if len(fingerprint) == 64:
            yield StepRef(stage, fingerprint)
        case list():
            for item in value:
                yield from _refs(item)
        case dict():
            yield from _refs(list(value.values()))


def _num_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
