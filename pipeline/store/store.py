"""The store: published artifacts, each named by its fingerprint, complete or not there at all.

A step writes into a draft on this machine; publishing makes it the artifact in one stroke.  Nothing published is ever
changed, so readers need no locks, and two publishers of one step are harmless: the first wins.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.steps.stages import Metrics
from pipeline.steps.step import Step, StepRef
from pipeline.store.bucket import BucketStorage
from pipeline.store.directory import DirectoryStorage
from pipeline.store.drafts import draft_directory, remove_abandoned
from pipeline.store.index import Index
from pipeline.store.ledger import Ledger
from pipeline.store.manifest import artifact_name, environment_of, file_name, manifest_of
from pipeline.store.storage import Records, Storage, Stored
from pipeline.store.timing import Timing

NUM_READERS, STEPS_A_READER = 16, 256


@dataclass(frozen=True, slots=True)
class Draft:
    """A step's output while it is being made."""

    step: Step
    path: Path
    store: "Store"

    def publish(self, metrics: Metrics, provenance: Mapping[str, Any]) -> None:
        """Make it the step's artifact, unless somebody else's is there already."""
        if self.store.has(self.step.ref):
            return
        manifest = manifest_of(self.step, self.path, metrics, provenance)
        self.store._storage.publish(self.path, self.step.stage.name, artifact_name(manifest), manifest)


@dataclass(frozen=True, slots=True)
class Address:
    """What a process needs to open a store: a directory, or a URL and a directory of the machine's own for copies."""

    root: str | Path
    cache: Path | None = None

    def open(self, patience_s: float = 0) -> "Store":
        return Store(self.root, self.cache, patience_s)


class Store:
    """Artifacts by their steps, in a directory that all workers share or at a URL with a ``cache`` directory here.

    ``patience_s``: how old a listing may be (see ``open_storage``).
    """

    def __init__(self, root: str | Path, cache: Path | None = None, patience_s: float = 0) -> None:
        self._storage = open_storage(root, cache, patience_s)
        self._index = Index(self._storage)
        self._address = Address(root, cache)

    @property
    def address(self) -> Address:
        """Where a worker finds the same store; absolute, because a worker's directory is another one."""
        if is_url(self._address.root):
            return replace(self._address, cache=self.local.resolve())
        return Address(self.local.resolve())

    @property
    def records(self) -> Records:
        """Small texts beside the artifacts: what is known of sweeps, runs and attempts."""
        return self._storage

    @property
    def ledger(self) -> Ledger:
        """Every attempt at every step."""
        return Ledger(self._storage)

    @property
    def url(self) -> str:
        """The store's place as users know it."""
        return self._storage.url

    @property
    def local(self) -> Path:
        """A directory of this machine for logs and memories; the store itself when that is a directory."""
        return self._storage.local

    def refresh(self) -> None:
        """Look again at what others may have published."""
        self._storage.refresh()

    def check_writable(self, needed_bytes: int) -> None:
        """Raise UserError when artifacts of ``needed_bytes`` cannot be taken."""
        self._storage.check_writable(needed_bytes)

    def everything(self) -> Iterator[Stored]:
        """Whatever can be proved to have been published here: artifacts, and what is left of others."""
        return self._storage.everything()

    def unproven(self) -> Sequence[str]:
        """Places of what was moved aside and cannot be proved to have been published here."""
        return self._storage.unproven()

    def hide(self, stored: Stored) -> Stored | None:
        """Take it out of sight, from where it can be restored or removed; None if it is gone."""
        return self._storage.hide(stored)

    def restore(self, hidden: Stored) -> None:
        """Bring back what was hidden, unless it was made again meanwhile."""
        self._storage.restore(hidden)

    def remove(self, hidden: Stored) -> None:
        """Remove what is out of sight for good, of its files those that were published."""
        self._storage.remove(hidden)

    def log_place(self, log: Path) -> str:
        """Where people find a log that this machine writes below ``local``."""
        return self._storage.log_place(log)

    def keep_log(self, log: Path) -> None:
        """Bring a log there."""
        self._storage.keep_log(log)

    def find_log(self, log: Path) -> Path | None:
        """The log on this machine, wherever it was written; None when there is none."""
        return self._storage.find_log(log)

    def has(self, ref: StepRef) -> bool:
        """Whether the step is published.  The full fingerprint in the manifest decides."""
        return self._name(ref) is not None

    def find(self, ref: StepRef) -> Path | None:
        """A directory with the published artifact's files, or None."""
        name = self._name(ref)
        return None if name is None else self._storage.fetch(ref.stage, name)

    def path(self, ref: StepRef) -> Path:
        """Like ``find`` for an artifact that must be there; raises FileNotFoundError."""
        return self._storage.fetch(ref.stage, self._name_of_present(ref))

    def manifest(self, ref: StepRef) -> dict[str, Any] | None:
        """The manifest of a published artifact, or None when there is none."""
        name = self._name(ref)
        return None if name is None else self._storage.manifest(ref.stage, name)

    def manifests(self, stage: str, labels: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
        """The manifests of everything that a stage has published, or under some labels, in order of name."""
        names = sorted(self._storage.listing(stage).values())
        if labels is not None:
            files = set(map(file_name, labels))
            names = [name for name in names if name.rpartition("-")[0] in files]
        with ThreadPoolExecutor(NUM_READERS) as readers:
            yield from filter(None, readers.map(lambda name: self._storage.manifest(stage, name), names))

    def environments(self, refs: Iterable[StepRef]) -> list[dict[str, Any]]:
        """The different environments that published artifacts were made in, with one manifest read for each."""
        found: dict[str, tuple[str, str]] = {}
        for stage, name in ((ref.stage, name) for ref in refs if (name := self._name(ref)) is not None):
            if (known := self._index.of(stage, name)) is not None:
                found.setdefault(known.environment, (stage, name))
        return [environment_of(self._storage.manifest(*artifact)) for artifact in found.values()]

    def timings(self, refs: Iterable[StepRef]) -> dict[StepRef, Timing]:
        """When and where those of the steps ran that ``missing`` found to be there; reads nothing."""
        listed: dict[str, Mapping[str, str]] = {}
        found: dict[StepRef, Timing] = {}
        for ref in refs:
            if ref.stage not in listed:
                listed[ref.stage] = self._storage.listing(ref.stage)
            known = self._index.remembered(ref.stage, listed[ref.stage].get(ref.fingerprint[:12], ""))
            if known is not None and known.fingerprint == ref.fingerprint and known.timing is not None:
                found[ref] = known.timing
        return found

    def missing(self, steps: Iterable[Step]) -> list[Step]:
        """The steps that are not published: the one list a run works through.

        Looks at many artifacts at once, because a shared file system answers late rather than slowly, and remembers
        their fingerprints, so that the next start reads no manifest.
        """
        steps = list(steps)
        self._storage.refresh()
        for stage in {step.stage.name for step in steps}:
            self._storage.listing(stage)
        portions = [steps[first : first + STEPS_A_READER] for first in range(0, len(steps), STEPS_A_READER)]
        with ThreadPoolExecutor(NUM_READERS) as readers:
            found = list(readers.map(self._not_found, portions))
        self._index.save()
        return [step for portion in found for step in portion]

    def damaged(self, steps: Iterable[Step]) -> dict[StepRef, str]:
        """Digest every published artifact of the steps again; those that are not what their manifest says, and why."""
        present = [(step.ref, name) for step in steps if (name := self._name(step.ref)) is not None]
        return {ref: what for ref, name in present if (what := self._storage.audit(ref.stage, name)) is not None}

    def damage(self, ref: StepRef) -> str | None:
        """Digest the files that ``path`` gives again; what in them is not as the manifest says, or None."""
        return self._storage.damage(ref.stage, self._name_of_present(ref))

    def set_aside(self, ref: StepRef) -> None:
        """Take a damaged artifact out of the store's sight; ``mode=gc`` removes it."""
        if (name := self._name(ref)) is not None:
            self._storage.set_aside(ref.stage, name)

    @contextlib.contextmanager
    def draft(self, step: Step) -> Iterator[Draft]:
        """An empty directory of this machine, gone afterwards whatever happens."""
        with draft_directory(self.local, step.stage.name, step.fingerprint[:12]) as path:
            yield Draft(step, path, self)

    def remove_abandoned_drafts(self) -> int:
        """Delete drafts whose owner is gone; returns how many."""
        return remove_abandoned(self.local)

    def _name(self, ref: StepRef) -> str | None:
        name = self._storage.listing(ref.stage).get(ref.fingerprint[:12])
        if name is None:
            return None
        known = self._index.of(ref.stage, name)
        return name if known is not None and known.fingerprint == ref.fingerprint else None

    def _name_of_present(self, ref: StepRef) -> str:
        name = self._name(ref)
        if name is None:
            self._storage.refresh()  # it may have been published by another worker a moment ago
            name = self._name(ref)
        if name is None:
            raise FileNotFoundError(f"{ref.short} is not in the store {self.url}")
        return name

    def _not_found(self, steps: Iterable[Step]) -> list[Step]:
        return [step for step in steps if not self.has(step.ref)]


def open_storage(root: str | Path, cache: Path | None = None, patience_s: float = 0) -> Storage:
    """The storage at a path or URL; ``cache`` is needed beside a URL.

    Listings may be ``patience_s`` old: a worker that publishes shard after shard beside thousands of others would
    read nothing else.  What it may miss so long is work that another driver did, which it then does again.
    """
    if not str(root).strip():
        raise UserError("the store has no place (an unset variable?): store.root=DIR")
    if not is_url(root):
        return DirectoryStorage(Path(root), patience_s)
    if cache is None:
        raise UserError(f"the store {root} needs a directory of this machine for its copies: set store.cache=DIR")
    return BucketStorage(str(root), cache, patience_s)


def is_url(root: str | Path) -> bool:
    """Whether a store's root is object storage rather than a directory."""
    return "://" in str(root)
