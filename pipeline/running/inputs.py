"""A batch's inputs in the store, their bytes checked: a flipped bit must not become a score."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil

from pipeline.steps.stages import STAGES
from pipeline.steps.step import Step, StepRef
from pipeline.store.store import Store
from stages.errors import CheckpointError, DataError, StageError

# A network file system may go on saying for a minute that what another machine published is not there.
APPEARS_WITHIN_S, LOOK_EVERY_S = 60.0, 2.0
ROOM = 2.0  # times its size must be free for a checkpoint to be read ahead
_CHECKPOINTS = {name for name, stage in STAGES.items() if stage.makes_checkpoint}


class Inputs:
    """What the steps of one batch read; each artifact is digested once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._checked: dict[StepRef, Path] = {}
        self._refused: dict[StepRef, StageError] = {}  # damaged, or not there
        self._ahead: dict[StepRef, Future[str | None]] = {}
        self._reader = ThreadPoolExecutor(1, "reader")

    def of(self, step: Step) -> dict[str, Path]:
        """Directories by input name.  Raises CheckpointError or DataError for what is damaged or does not appear."""
        return {name: self._sound(ref) for name, ref in step.inputs.items()}

    def of_later(self, step: Step) -> dict[str, Path] | None:
        """The same of a step whose turn has not come; None if something is not there or not read yet, or not sound.

        A checkpoint is read in a thread of its own, which also brings its files into memory.
        """
        refs = step.inputs.values()
        if not all(self._store.has(ref) for ref in refs) or not all(map(self._is_read, refs)):
            return None
        if any(self._damage(ref) for ref in refs):
            return None
        return {name: self._checked[ref] for name, ref in step.inputs.items()}

    def _is_read(self, ref: StepRef) -> bool:
        """Whether it takes no time to check an input; of a checkpoint it begins that, if memory can hold it."""
        if ref in self._checked or ref.stage not in _CHECKPOINTS:
            return True
        if ref not in self._ahead and self._has_room(ref):
            self._ahead[ref] = self._reader.submit(lambda: self._store.address.open().damage(ref))
        return ref in self._ahead and self._ahead[ref].done()

    def _has_room(self, ref: StepRef) -> bool:
        """Whether what is read now will still be in memory when it is asked for."""
        manifest = self._store.manifest(ref)
        num_bytes: int = sum(file["size"] for file in manifest["files"].values()) if manifest else 0
        available: int = psutil.virtual_memory().available
        return ROOM * num_bytes < available

    def _sound(self, ref: StepRef) -> Path:
        if ref not in self._refused and (what := self._trouble(ref)):
            kind = CheckpointError if ref.stage in _CHECKPOINTS else DataError
            self._refused[ref] = kind(what)
        if ref in self._refused:
            raise self._refused[ref]
        return self._checked[ref]

    def _trouble(self, ref: StepRef) -> str | None:
        if not self._appears(ref):
            return f"{ref.short} is not in the store {self._store.url}; run again and it is made"
        if what := self._damage(ref):
            self._store.set_aside(ref)
            return f"{ref.short} is damaged ({what}) and was moved aside; run again to make it again"
        return None

    def _appears(self, ref: StepRef) -> bool:
        """Whether the input is there, or comes to be seen from this machine soon."""
        deadline_s = time.monotonic() + APPEARS_WITHIN_S
        while ref not in self._checked and not self._store.has(ref):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(LOOK_EVERY_S)
            self._store.refresh()
        return True

    def _damage(self, ref: StepRef) -> str | None:
        """What is wrong with an input's bytes."""
        if ref in self._checked:
            return None
        ahead = self._ahead.pop(ref, None)
        what = self._store.damage(ref) if ahead is None or ahead.exception() else ahead.result()
        if what is None:
            self._checked[ref] = self._store.path(ref)
        return what
