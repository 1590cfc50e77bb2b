"""Garbage collection: artifacts that no sweep of the store refers to any more."""

from collections.abc import Iterator

from pipeline.results import record
from pipeline.steps.step import StepRef
from pipeline.store.storage import Stored
from pipeline.store.store import Store


def collect(store: Store, delete: bool) -> list[Stored]:
    """What no recorded sweep refers to, damaged artifacts included; removed with ``delete``.

    Everything that a used artifact was made from counts as used.  Drafts are left to their owners.
    """
    used = {(ref.stage, ref.fingerprint[:12]) for ref in _used(store)}
    unused = [each for each in store.everything() if _digits(each) not in used]
    if delete:
        for each in unused:
            store.remove(each)
    return unused


def _digits(stored: Stored) -> tuple[str, str] | None:
    return None if stored.name is None else (stored.stage, stored.name.rpartition("-")[2])


def _used(store: Store) -> set[StepRef]:
    wanted = set(_recorded(store))
    used, seen = set(), set()
    while wanted:
        seen.add(ref := wanted.pop())
        if (manifest := store.manifest(ref)) is not None:
            used.add(ref)
            wanted |= set(_refs(manifest["inputs"])) - seen
    return used


def _recorded(store: Store) -> Iterator[StepRef]:
    """Every step that a record of a sweep names; UserError for one that cannot be trusted to name all."""
    for file in record.files(store):
        yield from _refs(record.document(store, file))


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
