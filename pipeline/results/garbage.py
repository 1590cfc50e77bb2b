"""Garbage collection: artifacts that no sweep of the store refers to any more."""

import json
from collections.abc import Iterator

from pipeline.planning.plan import Plan
from pipeline.steps.step import StepRef
from pipeline.store.storage import Stored
from pipeline.store.store import Store


def collect(store: Store, plan: Plan, delete: bool) -> list[Stored]:
    """What neither a recorded sweep nor ``plan`` refers to, damaged artifacts included; removed with ``delete``.

    Everything that a used artifact was made from counts as used.  Drafts are left to their owners.
    """
    used = {(ref.stage, ref.fingerprint[:12]) for ref in _used(store, plan)}
    unused = [each for each in store.storage.everything() if _digits(each) not in used]
    if delete:
        for each in unused:
            store.storage.remove(each)
    return unused


def _digits(stored: Stored) -> tuple[str, str] | None:
    return None if stored.name is None else (stored.stage, stored.name.rpartition("-")[2])


def _used(store: Store, plan: Plan) -> set[StepRef]:
    wanted = set(plan.steps) | set(_recorded(store))
    used, seen = set(), set()
    while wanted:
        seen.add(ref := wanted.pop())
        if (manifest := store.manifest(ref)) is not None:
            used.add(ref)
            wanted |= set(_refs(manifest["inputs"])) - seen
    return used


def _recorded(store: Store) -> Iterator[StepRef]:
    """Every step that a record of a sweep names."""
    for name in store.storage.records("sweeps"):
        yield from _refs(json.loads(store.storage.read(f"sweeps/{name}") or "{}"))


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
