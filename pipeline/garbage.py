"""Garbage collection: artifacts that no sweep of the store refers to any more."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.plan import Plan
from pipeline.store import Store, read_manifest


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
        if _is_artifact(path) and path not in used
    ]
    if delete:
        for each in unused:
            shutil.rmtree(each.path)
    return unused


def _used(store: Store, plan: Plan) -> set[Path]:
    wanted = {ref.fingerprint for ref in plan.steps} | set(_recorded(store))
    paths, seen = set(), set()
    by_fingerprint = {
        manifest["fingerprint"]: path
        for path in store.root.glob("*/*/")
        if _is_artifact(path) and (manifest := read_manifest(path))
    }
    while wanted:
        fingerprint = wanted.pop()
        seen.add(fingerprint)
        if (path := by_fingerprint.get(fingerprint)) is not None:
            paths.add(path)
            wanted |= {made_from for _, made_from in read_manifest(path)["inputs"].values()} - seen
    return paths


def _recorded(store: Store) -> Iterator[str]:
    """Every fingerprint that a record of a sweep names."""
    for record in sorted((store.root / "sweeps").glob("*.json")):
        yield from _fingerprints(json.loads(record.read_text(encoding="utf-8"))["trials"])
        yield from _fingerprints(json.loads(record.read_text(encoding="utf-8"))["report"])


def _fingerprints(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _fingerprints(item)
    elif isinstance(value, str) and len(value) == 64:
        yield value


def _is_artifact(path: Path) -> bool:
    return path.parent.name not in ("ledger", "logs", "cache", "sweeps") and not path.name.startswith(".draft-")


def _num_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
