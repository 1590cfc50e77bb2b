"""Run one batch of steps in this process: the same code for the inline runner and for a Ray worker."""

import contextlib
import itertools
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from pipeline.batches import Batch
from pipeline.capture import captured, log_path
from pipeline.errors import RETRY, FailureClass, Retry, classify, one_line
from pipeline.ledger import History, Ledger
from pipeline.provenance import provenance
from pipeline.step import Step, StepRef
from pipeline.store import Store
from pipeline.watchdog import Limits, watched
from stages.errors import CheckpointError, DataError, StageError

LISTING_PATIENCE_S = 10.0
# A network file system may go on saying for a minute that what another machine published is not there.
APPEARS_WITHIN_S, LOOK_EVERY_S = 60.0, 2.0
ENOUGH_TO_DESPAIR = 2  # one failed start may be chance, also where nothing is tried twice
NUM_ANNOUNCED = 2  # one to fill the tail of a shard, one to be built meanwhile


class Status(Enum):
    """How a step ended."""

    succeeded = "succeeded"
    failed = "failed"
    skipped = "skipped"  # something it depends on failed
    not_run = "not run"  # the run was stopped before


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended, and why."""

    ref: StepRef
    status: Status
    failure_class: FailureClass | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every batch of a run shares.

    ``timeout_s`` holds limits by stage.  They are enforced by ending the process, so only where it is a worker's
    (``kills``).  ``drift`` says in which ways this environment is not the one that the sweep was begun in.
    """

    store_root: str | Path
    run_id: str
    max_attempts: int
    store_cache: Path | None = None
    timeout_s: Mapping[str, float] = field(default_factory=dict)
    back_off_s: float = 0
    kills: bool = False
    drift: tuple[str, ...] = ()

    def open_store(self, patience_s: float = 0) -> Store:
        return Store(self.store_root, self.store_cache, patience_s)


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
        self._upstream = dict(upstream)
        self._store = context.open_store(LISTING_PATIENCE_S)
        self._ledger = Ledger(self._store.storage)
        self._checked: dict[StepRef, Path] = {}
        self._refused: dict[StepRef, StageError] = {}  # inputs that are damaged or not there
        self._unopened: list[BaseException] = []  # why the session did not open, since it last did
        self._session: Any = None
        self._sessions = ExitStack()
        self._is_smaller = self._ledger.has_seen(batch.steps, FailureClass.oom, context.run_id)

    def outcomes(self) -> list[Outcome]:
        with self._sessions:
            outcomes = [self._noted(self._outcome_in_any_case(step)) for step in self._batch.steps]
            if self._session is not None:
                with contextlib.suppress(OSError), self._captured(self._batch.steps[-1]):
                    self._close_session()
        return outcomes

    def _noted(self, outcome: Outcome) -> Outcome:
        """Later steps of the batch may need this one."""
        self._upstream[outcome.ref] = outcome
        return outcome

    def _outcome_in_any_case(self, step: Step) -> Outcome:
        """A store that cannot be read for a moment costs one step, not those behind it."""
        try:
            return self._outcome(step)
        except Exception as error:
            return self._failed(step, classify(error), one_line(error))

    def _outcome(self, step: Step) -> Outcome:
        if self._store.has(step.ref):
            return Outcome(step.ref, Status.succeeded)
        if reason := self._ledger.stop_reason(self._context.run_id):
            return Outcome(step.ref, Status.not_run, message=reason)
        if blocked := self._blocked(step):
            return blocked
        return self._earlier_failure(step) or self._hopeless(step) or self._attempts(step)

    def _blocked(self, step: Step) -> Outcome | None:
        for ref in step.upstream:
            known = self._upstream.get(ref)
            if known is None or known.status is Status.succeeded:
                continue
            if known.status is Status.not_run:
                return Outcome(step.ref, Status.not_run, message=known.message)
            cause = known.message if known.status is Status.skipped else f"{ref.short} failed: {known.message}"
            self._ledger.skipped(step.ref, self._context.run_id, cause)
            return Outcome(step.ref, Status.skipped, FailureClass.upstream, cause)
        return None

    def _earlier_failure(self, step: Step) -> Outcome | None:
        """What earlier workers of this run left of the step, if it is not to be tried again."""
        history = self._history(step)
        if history.open_since is not None and self._hung(step, history.open_since):
            message = f"hung for longer than {self._timeout_s(step):g} s (cluster.timeout_s)"
            self._failed(step, FailureClass.timeout, message)
            history = self._history(step)
        if history.failure is not None and not self._may_retry(step, *history.failure):
            return Outcome(step.ref, Status.failed, *history.failure)
        if self._is_set_aside(step, history):
            message = f"set aside: its worker died {self._context.max_attempts} times"
            return self._failed(step, FailureClass.crash, message)
        return None

    def _hopeless(self, step: Step) -> Outcome | None:
        """A session that never opens is not tried for every step: each start takes a minute of the GPUs."""
        if not step.stage.sessions or len(self._unopened) < max(self._context.max_attempts, ENOUGH_TO_DESPAIR):
            return None
        last = self._unopened[-1]
        message = f"not tried: what it shares with others did not open {len(self._unopened)} times: {one_line(last)}"
        return self._failed(step, classify(last), message)

    def _hung(self, step: Step, since_s: float) -> bool:
        """Whether the watchdog's C-level timer ended it, which leaves no word but writes to the log after the limit."""
        limit_s = self._timeout_s(step)
        try:
            last_s = self._log_path(step).stat().st_mtime
        except FileNotFoundError:
            return False
        return limit_s is not None and last_s - since_s > limit_s

    def _is_set_aside(self, step: Step, history: History) -> bool:
        """A step that keeps killing its worker, or a session that never lived long enough to publish anything."""
        limit = self._context.max_attempts
        if history.num_deaths >= limit:
            return True
        if not step.stage.sessions or any(self._store.has(other.ref) for other in self._batch.steps):
            return False
        return sum(self._history(other).num_deaths for other in self._batch.steps) >= limit

    def _attempts(self, step: Step) -> Outcome:
        """Try until it succeeds or its failure is not one that another attempt could mend."""
        while True:
            outcome = self._attempt(step)
            if outcome.failure_class is None or not self._may_retry(step, outcome.failure_class, outcome.message):
                return outcome
            time.sleep(self._context.back_off_s * 2 ** (self._history(step).num_started - 1))

    def _may_retry(self, step: Step, failure_class: FailureClass, message: str) -> bool:
        retry, history = RETRY[failure_class], self._history(step)
        if retry is Retry.stop:
            with contextlib.suppress(OSError):
                self._ledger.request_stop(self._context.run_id, f"{failure_class.value}: {message}")
        if retry is Retry.smaller and history.num_oom == 1 and step.stage.smaller(step.config) is not None:
            self._is_smaller = True
            return True
        return retry is Retry.again and history.num_started < self._context.max_attempts

    def _attempt(self, step: Step) -> Outcome:
        try:
            return self._attempt_on_record(step)
        except OSError as error:  # neither ledger nor log can be written
            return self._failed(step, classify(error), one_line(error))

    def _attempt_on_record(self, step: Step) -> Outcome:
        self._ledger.started(step.ref, self._context.run_id, self._store.storage.log_place(self._log_path(step)))
        started = time.time()
        with self._captured(step):
            try:
                with self._limited(step):
                    self._make(step, started)
            except Exception as error:
                traceback.print_exc()
                failure_class = classify(error)
                if failure_class in (FailureClass.engine, FailureClass.oom):
                    self._close_session()
                return self._failed(step, failure_class, one_line(error))
        self._ledger.succeeded(step.ref, self._context.run_id, time.time() - started)
        return Outcome(step.ref, Status.succeeded)

    def _failed(self, step: Step, failure_class: FailureClass, message: str) -> Outcome:
        # On a full disk the ledger cannot be written either; the outcome still tells the driver.
        with contextlib.suppress(OSError):
            self._ledger.failed(step.ref, self._context.run_id, failure_class, message)
        return Outcome(step.ref, Status.failed, failure_class, message)

    def _limited(self, step: Step) -> contextlib.AbstractContextManager[None]:
        if not self._context.kills:
            return contextlib.nullcontext()
        limits = Limits(self._timeout_s(step), step.resources.memory_gib)
        return watched(
            limits,
            lambda failure_class, message: self._ledger.failed(step.ref, self._context.run_id, failure_class, message),
        )

    def _timeout_s(self, step: Step) -> float | None:
        return self._context.timeout_s.get(step.stage.name) if self._context.kills else None

    def _history(self, step: Step) -> History:
        return self._ledger.history(step.ref, self._context.run_id)

    def _make(self, step: Step, started: float) -> None:
        inputs = {name: self._sound(ref) for name, ref in step.inputs.items()}
        config = (step.stage.smaller(step.config) or step.config) if self._is_smaller else step.config
        if step.stage.sessions and self._session is None:
            self._session = self._opened(step.stage.open_session(config, inputs))
        if step.stage.sessions:
            self._announce_next(step)
        with self._store.draft(step) as draft:
            called = time.perf_counter()
            metrics = step.stage.run(config, inputs, draft.path, self._session)
            times = {
                "started": round(started, 3),
                "ended": round(time.time(), 3),
                "stage_s": round(time.perf_counter() - called, 4),
                "run_id": self._context.run_id,
            }
            drift = {"drift": list(self._context.drift)} if self._context.drift else {}
            draft.publish(metrics, {**provenance(), **times, **drift})

    def _opened(self, session: contextlib.AbstractContextManager[Any]) -> Any:
        try:
            opened = self._sessions.enter_context(session)
        except Exception as error:
            if classify(error) is FailureClass.engine:  # anything else may be this step's own fault
                self._unopened.append(error)
            raise
        self._unopened.clear()
        return opened

    def _announce_next(self, step: Step) -> None:
        """Let the session begin with the steps that will come after this one, unless they cannot run."""
        behind = itertools.islice(itertools.dropwhile(lambda each: each is not step, self._batch.steps), 1, None)
        with contextlib.suppress(OSError):  # whatever is wrong with one is said when it is its turn
            if self._ledger.stop_reason(self._context.run_id):
                return
            for later in itertools.islice((each for each in behind if not self._store.has(each.ref)), NUM_ANNOUNCED):
                is_there = all(self._store.has(ref) for ref in later.inputs.values())
                if is_there and not any(self._damage(ref) for ref in later.inputs.values()):
                    inputs = {name: self._checked[ref] for name, ref in later.inputs.items()}
                    later.stage.announce(later.config, inputs, self._session)

    def _sound(self, ref: StepRef) -> Path:
        """The input's directory, its bytes checked: a flipped bit must not become a score."""
        if ref in self._refused:
            raise self._refused[ref]
        kind = CheckpointError if ref.stage in ("fetch_model", "quantize") else DataError
        if not self._appears(ref):
            self._refused[ref] = kind(f"{ref.short} is not in the store {self._store.url}; run again and it is made")
            raise self._refused[ref]
        if what := self._damage(ref):
            self._store.set_aside(ref)
            self._refused[ref] = kind(
                f"{ref.short} is damaged ({what}) and was moved aside; run again to make it again"
            )
            raise self._refused[ref]
        return self._checked[ref]

    def _appears(self, ref: StepRef) -> bool:
        """Whether the input is there, or comes to be seen from this machine soon."""
        deadline_s = time.monotonic() + APPEARS_WITHIN_S
        while ref not in self._checked and not self._store.has(ref):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(LOOK_EVERY_S)
            self._store.storage.refresh()
        return True

    def _damage(self, ref: StepRef) -> str | None:
        """What is wrong with an input's bytes; a sound one is digested once by this batch."""
        if ref in self._checked:
            return None
        what = self._store.damage(ref)
        if what is None:
            self._checked[ref] = self._store.path(ref)
        return what

    def _close_session(self) -> None:
        """A dead engine is dropped; the next step opens a new one."""
        self._session = None
        with contextlib.suppress(Exception):
            self._sessions.close()

    def _log_path(self, step: Step) -> Path:
        return log_path(self._store.local, step)

    @contextlib.contextmanager
    def _captured(self, step: Step) -> Iterator[None]:
        log = self._log_path(step)
        try:
            with captured(log):
                yield
        finally:
            self._store.storage.keep_log(log)
