"""What manifests state, remembered between starts, so that a plan of 10,000 steps does not read 10,000 files."""

from typing import NamedTuple

from pipeline.steps.fingerprint import fingerprint
from pipeline.store.manifest import environment_of
from pipeline.store.memory import recall, remember
from pipeline.store.storage import Storage


class Known(NamedTuple):
    """What a manifest states; ``environment`` is a digest that is equal for equal environments."""

    stamp: str
    fingerprint: str
    environment: str


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
            known = Known(stamp, manifest["fingerprint"], fingerprint(environment_of(manifest))[:16])
            self._loaded()[f"{stage}/{name}"] = known
            self._is_new = True
        return known

    def save(self) -> None:
        """Write it down if something was added; a store that cannot be written to stays readable."""
        if self._is_new and remember(self._path, self._loaded()):
            self._is_new = False

    def _loaded(self) -> dict[str, Known]:
        if self._known is None:
            self._known = {name: Known(*known) for name, known in (recall(self._path) or {}).items()}
        return self._known
