"""Run one batch of steps in this process: the same code for the inline runner and for a Ray worker."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pipeline.errors import FailureClass, classify, one_line
from pipeline.ledger import Ledger
from pipeline.plan import Batch
from pipeline.provenance import provenance
from pipeline.step import Step, StepRef
from pipeline.store import Store, file_name
from stages.errors import EngineError


class Status(Enum):
    """How a step ended."""

    succeeded = "succeeded"
    failed = "failed"
    skipped = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended, and why."""

    ref: StepRef
    status: Status
    failure_class: FailureClass | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every batch of a run shares."""

    store_root: Path
    run_id: str
    max_attempts: int


def run_batch(batch: Batch, context: RunContext, upstream: Iterable[Outcome]) -> list[Outcome]:
    """Run the batch's steps in order; each is published the moment it is done.

    Outcomes are values: a step that fails stops only what depends on it.  Runs again harmlessly after a death of the
    process, when it goes on with what is not published yet.
    """
    return _BatchRun(batch, context, {outcome.ref: outcome for outcome in upstream}).outcomes()


class _BatchRun:
    def __init__(self, batch: Batch, context: RunContext, upstream: Mapping[StepRef, Outcome]) -> None:
        self._batch = batch
        self._context = context
        self._upstream = upstream
        self._store = Store(context.store_root)
        self._ledger = Ledger(context.store_root)
        self._session: Any = None

    def outcomes(self) -> list[Outcome]:
        with ExitStack() as session_stack:
            outcomes = [self._outcome(step, session_stack) for step in self._batch.steps]
            with self._captured(self._batch.steps[-1]):
                self._close_session(session_stack)
        return outcomes

    def _outcome(self, step: Step, session_stack: ExitStack) -> Outcome:
        if self._store.find(step.ref) is not None:
            return Outcome(step.ref, Status.succeeded)
        if blocked := self._blocked(step):
            return blocked
        if failed := self._ledger.failure_in(step.ref, self._context.run_id):
            return Outcome(step.ref, Status.failed, failed.failure_class, failed.message)
        if self._is_set_aside(step):
            return self._failed(
                step, FailureClass.crash, f"set aside: its worker died {self._context.max_attempts} times"
            )
        return self._attempt(step, session_stack)

    def _blocked(self, step: Step) -> Outcome | None:
        for ref in step.upstream:
            known = self._upstream.get(ref)
            if known is not None and known.status is not Status.succeeded:
                cause = known.message if known.status is Status.skipped else f"{ref.short} failed: {known.message}"
                self._ledger.skipped(step.ref, self._context.run_id, cause)
                return Outcome(step.ref, Status.skipped, FailureClass.upstream, cause)
        return None

    def _is_set_aside(self, step: Step) -> bool:
        """A step that keeps killing its worker, or a session that never lived long enough to publish anything."""
        run_id, limit = self._context.run_id, self._context.max_attempts
        if self._ledger.deaths(step.ref, run_id) >= limit:
            return True
        if not step.stage.sessions or any(self._store.find(other.ref) for other in self._batch.steps):
            return False
        return sum(self._ledger.deaths(other.ref, run_id) for other in self._batch.steps) >= limit

    def _attempt(self, step: Step, session_stack: ExitStack) -> Outcome:
        self._ledger.started(step.ref, self._context.run_id, self._log_path(step))
        started = time.time()
        with self._captured(step):
            try:
                self._make(step, session_stack, started)
            except Exception as error:
                traceback.print_exc()
                if isinstance(error, EngineError):
                    self._close_session(session_stack)
                return self._failed(step, classify(error), one_line(error))
        self._ledger.succeeded(step.ref, self._context.run_id, time.time() - started)
        return Outcome(step.ref, Status.succeeded)

    def _failed(self, step: Step, failure_class: FailureClass, message: str) -> Outcome:
        self._ledger.failed(step.ref, self._context.run_id, failure_class, message)
        return Outcome(step.ref, Status.failed, failure_class, message)

    def _make(self, step: Step, session_stack: ExitStack, started: float) -> None:
        inputs = {name: self._store.path(ref) for name, ref in step.inputs.items()}
        if step.stage.sessions and self._session is None:
            self._session = session_stack.enter_context(step.stage.open_session(step.config, inputs))
        with self._store.draft(step) as draft:
            metrics = step.stage.run(step.config, inputs, draft.path, self._session)
            times = {"started": round(started, 3), "ended": round(time.time(), 3), "run_id": self._context.run_id}
            draft.publish(metrics, {**provenance(), **times})

    def _close_session(self, session_stack: ExitStack) -> None:
        """A dead engine is dropped; the next step opens a new one."""
        self._session = None
        with contextlib.suppress(Exception):
            session_stack.close()

    def _log_path(self, step: Step) -> Path:
        return log_path(self._context.store_root, step)

    def _captured(self, step: Step) -> contextlib.AbstractContextManager[None]:
        return _captured(self._log_path(step))


def log_path(store_root: Path, step: Step) -> Path:
    """Where everything that a step prints is kept."""
    return store_root / "logs" / step.stage.name / f"{file_name(step.label)}-{step.fingerprint[:12]}.log"


@contextlib.contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Append to ``log`` everything this process and its children print, through Python or past it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", errors="replace") as stream:
        saved = [os.dup(descriptor) for descriptor in (1, 2)]
        try:
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                _point(stream.fileno(), stream.fileno())
                yield
        finally:
            _point(*saved)
            for descriptor in saved:
                os.close(descriptor)


def _point(stdout: int, stderr: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
