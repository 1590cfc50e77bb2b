"""Garbage collection: published artifacts that no sweep of the store names any more."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import UserError
from pipeline.results import record
from pipeline.steps.step import StepRef
from pipeline.store.manifest import is_ref
from pipeline.store.storage import Stored
from pipeline.store.store import Store

NUM_READERS = 16  # of manifests, each a request to object storage


def collect(store: Store, delete: bool) -> list[Stored]:
    """What no recorded sweep names, damaged artifacts included; with ``delete`` what was removed of it.

    What a record names is safe whether it is there or not, and so is everything that it was made from.  Nothing is
    looked at that the store cannot prove to have published; drafts are left to their owners.
    """
    found = list(store.everything())  # before the records are read: what is published from now on is not in it
    unused = _unnamed(store, found)
    try:
        return _remove(store, unused) if delete and unused else unused
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be removed ({error.strerror}): run mode=gc as its owner") from None


def _remove(store: Store, unused: Sequence[Stored]) -> list[Stored]:
    """Hide everything first, and bring back what a record names by then.

    A sweep saves its record before it looks at what is there: either it is seen here, or it sees nothing hidden.
    """
    hidden = dict[Stored, Stored]()
    try:
        for each in unused:
            if (there := store.hide(each)) is not None:
                hidden[each] = there
        removed = [each for each in _unnamed(store, unused) if each in hidden]
        for each in removed:
            store.remove(hidden.pop(each))
        return removed
    finally:  # also where this is interrupted, or may hide some and not others
        for each, there in hidden.items():
            if each.name is not None:  # what was out of sight before stays so
                store.restore(there)


def _unnamed(store: Store, found: Sequence[Stored]) -> list[Stored]:
    store.refresh()
    named = {(ref.stage, ref.fingerprint[:12]) for ref in _named(store)}
    return [each for each in found if _digits(each) not in named]


def _digits(stored: Stored) -> tuple[str, str] | None:
    return None if stored.name is None else (stored.stage, stored.name.rpartition("-")[2])


def _named(store: Store) -> set[StepRef]:
    """What records name, and what that was made from as far as it is there."""
    named, beyond = set[StepRef](), set(_recorded(store))
    with ThreadPoolExecutor(NUM_READERS) as readers:
        while beyond:
            named |= beyond
            found = filter(None, readers.map(store.manifest, beyond))
            beyond = {StepRef(*each) for manifest in found for each in manifest["inputs"].values()} - named
    return named


def _recorded(store: Store) -> Iterator[StepRef]:
    """Every step that a record of a sweep names; UserError for one that cannot be trusted to name all."""
    for file in record.files(store):
        if (found := record.document(store, file)) is None:  # a link to nothing, or a record that was moved just now
            raise UserError(f"{store.url}: sweeps/{file}.json cannot be read: restore it or remove it, and run again")
        yield from _refs(found)


def _refs(value: object) -> Iterator[StepRef]:
    """Every ``[stage, fingerprint]`` in a piece of JSON."""
    match value:
        case [str(stage), str(fingerprint)] if is_ref(value):
            yield StepRef(stage, fingerprint)
        case list():
            for item in value:
                yield from _refs(item)
        case dict():
            yield from _refs(list(value.values()))
