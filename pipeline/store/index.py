"""What manifests state, remembered between starts, so that a plan of 10,000 steps does not read 10,000 files."""

from typing import Any, NamedTuple

from pipeline.steps.fingerprint import fingerprint
from pipeline.store.manifest import environment_of
from pipeline.store.memory import recall, remember
from pipeline.store.storage import Storage
from pipeline.store.timing import Timing, timing_of


class Known(NamedTuple):
    """What a manifest states; ``environment`` is a digest that is equal for equal environments."""

    stamp: str
    fingerprint: str
    environment: str
    timing: Timing | None


class Index:
    """Only a memory, in ``cache/index.json`` of this machine: a manifest written anew since is read again."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._path = storage.local / "cache" / "index.json"
        self._known: dict[str, Known] | None = None
        self._is_new = False

    def of(self, stage: str, name: str) -> Known | None:
        """What an artifact's manifest states; None where there is none that can be read."""
        stamp = self._storage.stamp(stage, name)
        if stamp is None:
            return None
        known = self._loaded().get(f"{stage}/{name}")
        if known is None or known.stamp != stamp:
            manifest = self._storage.manifest(stage, name)
            if not manifest:
                return None
            environment = fingerprint(environment_of(manifest))[:16]
            known = Known(stamp, manifest["fingerprint"], environment, timing_of(manifest))
            self._loaded()[f"{stage}/{name}"] = known
            self._is_new = True
        return known

    def remembered(self, stage: str, name: str) -> Known | None:
        """The same without a look at the artifact."""
        return self._loaded().get(f"{stage}/{name}")

    def save(self) -> None:
        """Write it down if something was added; a store that cannot be written to stays readable."""
        if self._is_new and remember(self._path, self._loaded()):
            self._is_new = False

    def _loaded(self) -> dict[str, Known]:
        if self._known is None:
            remembered = (recall(self._path) or {}).items()
            # What an earlier version remembered, which was less, is read again.
            self._known = {name: _known(*known) for name, known in remembered if len(known) == len(Known._fields)}
        return self._known


def _known(stamp: str, fingerprint: str, environment: str, timing: list[Any] | None) -> Known:
    """JSON has no tuples."""
    return Known(stamp, fingerprint, environment, None if timing is None else Timing.recalled(timing))
