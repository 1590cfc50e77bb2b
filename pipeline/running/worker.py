"""Run one batch of steps in this process: the same code for the inline runner and for a Ray worker."""

import contextlib
import itertools
import math
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import RETRY, FailureClass, Retry, classify
from pipeline.running.attempts import Attempts
from pipeline.running.batches import Batch
from pipeline.running.capture import captured
from pipeline.running.inputs import Inputs
from pipeline.running.outcome import Outcome, RunContext, Status
from pipeline.running.watchdog import Limits, watched
from pipeline.steps.step import Step, StepRef
from pipeline.store.provenance import provenance
from stages.errors import one_line, redacted
from stages.gpu import held_gpus
from stages.gpu_memory import memory_used_mib

LISTING_PATIENCE_S = 10.0
ENOUGH_TO_DESPAIR = 2  # one failed start may be chance, also where nothing is tried twice
NUM_ANNOUNCED = 4  # one to fill the tail of a shard, others to be built meanwhile: shards of a leaf are short


class ProcessUsedUpError(Exception):
    """The rest of a batch needs a new process; what is done is published."""


def run_batch(batch: Batch, context: RunContext, upstream: Iterable[Outcome]) -> list[Outcome]:
    """Run the batch's steps in order; each is published the moment it is done.

    Outcomes are values: a step that fails stops only what depends on it.  Runs again harmlessly after a death of the
    process, or ProcessUsedUpError, when it goes on with what is not published yet.
    """
    return _BatchRun(batch, context, {outcome.ref: outcome for outcome in upstream}).outcomes()


class _BatchRun:
    def __init__(self, batch: Batch, context: RunContext, upstream: Mapping[StepRef, Outcome]) -> None:
        self._batch = batch
        self._context = context
        self._upstream = dict(upstream)
        self._store = context.store.open(LISTING_PATIENCE_S)
        self._ledger = self._store.ledger
        self._attempts = Attempts(batch, context, self._store, self._ledger)
        self._inputs = Inputs(self._store)
        self._session: Any = None
        self._sessions = ExitStack()
        self._checkpoint: StepRef | None = None  # that the session answers from
        self._opened_with: StepRef | None = None
        self._num_exchanges, self._exchange_s = 0, 0.0
        earlier = self._attempts.earlier()
        self._is_smaller, self._unopened = earlier.ran_out_of_memory, earlier.unopened
        self._is_used_up = False

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
        except ProcessUsedUpError:
            raise
        except Exception as error:
            return self._attempts.failed(step, classify(error), one_line(error))

    def _outcome(self, step: Step) -> Outcome:
        if self._store.has(step.ref):
            return Outcome(step.ref, Status.succeeded)
        if reason := self._ledger.stop_reason(self._context.run_id):
            return Outcome(step.ref, Status.not_run, message=reason)
        if blocked := self._blocked(step):
            return blocked
        return self._attempts.earlier_failure(step) or self._hopeless(step) or self._tried(step)

    def _blocked(self, step: Step) -> Outcome | None:
        for ref in step.upstream:
            known = self._upstream.get(ref)
            if known is None or known.status is Status.succeeded:
                continue
            if known.status is Status.not_run:
                return Outcome(step.ref, Status.not_run, message=known.message)
            cause = known.message if known.status is Status.skipped else f"{ref.short} failed: {known.message}"
            return self._attempts.skipped(step, cause)
        return None

    def _hopeless(self, step: Step) -> Outcome | None:
        """A session that never opens is not tried for every step: each start takes a minute of the GPUs."""
        if not step.stage.sessions:
            return None
        unopened = self._unopened[step.inputs["checkpoint"]]
        if len(unopened) < max(self._context.max_attempts, ENOUGH_TO_DESPAIR):
            return None
        message = f"not tried: what it shares with others did not open {len(unopened)} times: {unopened[-1]}"
        return self._attempts.failed(step, FailureClass.engine, message)

    def _tried(self, step: Step) -> Outcome:
        """Try until it succeeds or its failure is not one that another attempt could mend."""
        while True:
            outcome = self._attempt(step)
            if outcome.failure_class is None:
                return outcome
            if not self._attempts.may_retry(step, outcome.failure_class, outcome.message):
                return outcome
            self._is_smaller |= RETRY[outcome.failure_class] is Retry.smaller
            time.sleep(self._attempts.pause_s(step))

    def _attempt(self, step: Step) -> Outcome:
        if self._is_used_up:
            raise ProcessUsedUpError
        try:
            return self._attempt_on_record(step)
        except OSError as error:  # neither ledger nor log can be written
            return self._attempts.failed(step, classify(error), one_line(error))

    def _attempt_on_record(self, step: Step) -> Outcome:
        self._attempts.started(step)
        started = time.time()
        with self._captured(step):
            try:
                with self._limited(step):
                    self._make(step, started)
            except ProcessUsedUpError:
                self._ledger.stopped(step.ref, self._context.run_id)
                raise
            except Exception as error:
                print(redacted(traceback.format_exc()), file=sys.stderr)
                return self._failed(step, error)
        return self._attempts.succeeded(step, time.time() - started)

    def _failed(self, step: Step, error: Exception) -> Outcome:
        """An engine that failed is dropped; on a GPU so is its process, where it may have left memory and ranks."""
        failure_class = classify(error)
        unopened = step.stage.sessions and self._session is None and failure_class is FailureClass.engine
        if unopened:  # anything else may be this step's own fault
            self._unopened[step.inputs["checkpoint"]].append(redacted(one_line(error)))
        if failure_class in (FailureClass.engine, FailureClass.oom):
            self._close_session()
            self._is_used_up = self._context.kills and bool(step.resources.num_gpus)
        return self._attempts.failed(step, failure_class, one_line(error), unopened)

    def _limited(self, step: Step) -> contextlib.AbstractContextManager[None]:
        if not self._context.kills:
            return contextlib.nullcontext()
        limits = Limits(self._context.limit_s(step.stage.name), step.resources.memory_gib)
        return watched(
            limits,
            lambda failure_class, message: self._ledger.failed(step.ref, self._context.run_id, failure_class, message),
        )

    def _make(self, step: Step, started: float) -> None:
        inputs = self._inputs.of(step)
        config = (step.stage.smaller(step.config) or step.config) if self._is_smaller else step.config
        if step.stage.sessions:
            self._turn_to(step, config, inputs)
            self._announce_next(step)
        with self._store.draft(step) as draft:
            memory_before = _gpu_memory_mib(step)
            called = time.perf_counter()
            metrics = step.stage.run(config, inputs, draft.path, self._session)
            times = {
                "started": round(started, 3),
                "ended": round(time.time(), 3),
                "stage_s": round(time.perf_counter() - called, 4),
                "run_id": self._context.run_id,
            }
            changes = {"environment_changes": list(self._context.changes)} if self._context.changes else {}
            memory = {"before": memory_before, "after": _gpu_memory_mib(step)}
            on_gpu = {"gpu_memory_used_mib": memory} if step.resources.num_gpus else {}
            draft.publish(metrics, {**provenance(), **times, **_cost(step), **on_gpu, **self._exchanges(), **changes})

    def _exchanges(self) -> dict[str, Any]:
        """What the session was opened with, where that was another checkpoint."""
        if not self._num_exchanges or self._opened_with is None:
            return {}
        exchanged = {"exchanges": self._num_exchanges, "exchange_s": round(self._exchange_s, 3)}
        return {"session": {"opened_with": self._opened_with.short, **exchanged}}

    def _turn_to(self, step: Step, config: Any, inputs: Mapping[str, Path]) -> None:
        """Have a session with the step's checkpoint."""
        checkpoint = step.inputs["checkpoint"]
        if self._session is not None and self._checkpoint != checkpoint:
            self._exchange(step, inputs)
        if self._session is None:
            self._session = self._opened(checkpoint, step.stage.open_session(config, inputs))
            self._opened_with, self._num_exchanges = checkpoint, 0
        self._checkpoint = checkpoint

    def _exchange(self, step: Step, inputs: Mapping[str, Path]) -> None:
        """Put the step's checkpoint into the open session; whatever is in the way, the session is closed then.

        What an engine leaves of itself on a GPU keeps the next one from opening in the same process.
        """
        began = time.perf_counter()
        try:
            step.stage.exchange(inputs, self._session)
            self._num_exchanges, self._exchange_s = self._num_exchanges + 1, time.perf_counter() - began
        except Exception as error:
            print(f"a new session, since the open one took no other checkpoint: {one_line(error)}", file=sys.stderr)
            self._close_session()
            if self._context.kills and step.resources.num_gpus:
                raise ProcessUsedUpError from error

    def _opened(self, checkpoint: StepRef, session: contextlib.AbstractContextManager[Any]) -> Any:
        opened = self._sessions.enter_context(session)
        self._unopened[checkpoint].clear()
        return opened

    def _announce_next(self, step: Step) -> None:
        """Let the session begin with the steps that will come after this one, unless they cannot run."""
        behind = itertools.islice(itertools.dropwhile(lambda each: each is not step, self._batch.steps), 1, None)
        with contextlib.suppress(OSError):  # whatever is wrong with one is said when it is its turn
            if self._ledger.stop_reason(self._context.run_id):
                return
            for later in itertools.islice((each for each in behind if not self._store.has(each.ref)), NUM_ANNOUNCED):
                inputs = self._inputs.of_later(later)
                if inputs is not None:
                    later.stage.announce(later.config, inputs, self._session)

    def _close_session(self) -> None:
        """A dead engine is dropped; the next step opens a new one."""
        self._session = None
        with contextlib.suppress(Exception):
            self._sessions.close()

    @contextlib.contextmanager
    def _captured(self, step: Step) -> Iterator[None]:
        log = self._attempts.log_path(step)
        try:
            with captured(log):
                yield
        finally:
            self._store.keep_log(log)


def _cost(step: Step) -> dict[str, Any]:
    """What the step holds, and what it was expected to take."""
    held = held_gpus(step.resources.num_gpus)
    return {
        "num_gpus": step.resources.num_gpus,
        "held_gpus": None if held is None else [asdict(gpu) for gpu in held],
        "expected_s": step.expected_s,
    }


def _gpu_memory_mib(step: Step) -> list[int] | None:
    """What is taken of the step's GPUs; None where it has none, or no driver tells."""
    return memory_used_mib(math.ceil(step.resources.num_gpus)) if step.resources.num_gpus else None
