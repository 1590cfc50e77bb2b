"""What the ledger says of a batch's steps in this run, and whether one is tried again."""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from pipeline.errors import RETRY, FailureClass, Retry
from pipeline.running.batches import Batch
from pipeline.running.capture import log_path
from pipeline.running.nodes import blamed, this_node
from pipeline.running.outcome import Outcome, RunContext, Status
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import History, Ledger
from pipeline.store.store import Store
from stages.errors import redacted


@dataclass(frozen=True, slots=True)
class Earlier:
    """Whether a step ran out of memory, and for each checkpoint why its session did not open since it last did."""

    ran_out_of_memory: bool
    unopened: dict[StepRef, list[str]]


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts at the steps of one batch, by this worker and by those before it."""

    batch: Batch
    context: RunContext
    store: Store
    ledger: Ledger

    @property
    def _node_id(self) -> str | None:
        return self.context.node_id or this_node()

    def log_path(self, step: Step) -> Path:
        return log_path(self.store.local, step)

    def started(self, step: Step) -> None:
        log = self.store.log_place(self.log_path(step))
        self.ledger.started(step.ref, self.context.run_id, log, self._node_id)

    def succeeded(self, step: Step, seconds: float) -> Outcome:
        self.ledger.succeeded(step.ref, self.context.run_id, seconds)
        return Outcome(step.ref, Status.succeeded, seconds=seconds)

    def skipped(self, step: Step, cause: str) -> Outcome:
        self.ledger.skipped(step.ref, self.context.run_id, cause)
        return Outcome(step.ref, Status.skipped, FailureClass.upstream, cause)

    def failed(self, step: Step, failure_class: FailureClass, message: str, unopened: bool = False) -> Outcome:
        message = redacted(message)
        # On a full disk the ledger cannot be written either; the outcome still tells the driver.
        with contextlib.suppress(OSError):
            self.ledger.failed(step.ref, self.context.run_id, failure_class, message, unopened)
        return Outcome(step.ref, Status.failed, failure_class, message)

    def earlier_failure(self, step: Step) -> Outcome | None:
        """What earlier workers of this run left of the step, if it is not to be tried again."""
        history = self._history(step)
        if history.open_since is not None and self._hung(step, history.open_since):
            message = f"hung for longer than {self.context.limit_s(step.stage.name):g} s (cluster.timeout_s)"
            self.failed(step, FailureClass.timeout, message)
            history = self._history(step)
        if history.failure is not None and not self.may_retry(step, *history.failure):
            return Outcome(step.ref, Status.failed, *history.failure)
        if self._is_set_aside(step, history):
            message = f"set aside: its worker died {self.context.max_attempts} times"
            return self.failed(step, FailureClass.crash, message)
        return None

    def may_retry(self, step: Step, failure_class: FailureClass, message: str) -> bool:
        """Whether another attempt could end otherwise.  Where no step's could, the run is asked to stop."""
        retry, history = RETRY[failure_class], self._history(step)
        if retry is Retry.stop:
            with contextlib.suppress(OSError):
                self.ledger.request_stop(self.context.run_id, f"{failure_class.value}: {message}")
        if retry is Retry.smaller:
            return history.num_oom == 1 and step.stage.smaller(step.config) is not None
        num_tries = history.num_started - history.num_deaths + blamed(history.deaths, self._node_id, within_s=0)
        return retry is Retry.again and num_tries < self.context.max_attempts

    def pause_s(self, step: Step) -> float:
        """How long to wait before the next attempt."""
        return float(self.context.back_off_s * 2 ** (self._history(step).num_started - 1))

    def earlier(self) -> "Earlier":
        """What earlier workers of this run met with."""
        events = self.ledger.events_in(self.context.run_id, self.batch.steps)
        checkpoints = {step.ref: step.inputs["checkpoint"] for step in self.batch.steps if step.stage.sessions}
        unopened: dict[StepRef, list[str]] = defaultdict(list)
        timeline = sorted(
            ((event["time"], checkpoint, event) for ref, checkpoint in checkpoints.items() for event in events[ref]),
            key=itemgetter(0),
        )
        for _, checkpoint, event in timeline:
            if event["event"] == "succeeded":
                unopened[checkpoint].clear()
            elif event.get("unopened"):
                unopened[checkpoint].append(event["message"])
        oom = any(
            event.get("failure_class") == FailureClass.oom.value for of_step in events.values() for event in of_step
        )
        return Earlier(ran_out_of_memory=oom, unopened=unopened)

    def _hung(self, step: Step, since_s: float) -> bool:
        """Whether the watchdog's C-level timer ended it, which leaves no word but writes to the log after the limit."""
        limit_s = self.context.limit_s(step.stage.name)
        try:
            last_s = self.log_path(step).stat().st_mtime
        except FileNotFoundError:
            return False
        return limit_s is not None and last_s - since_s > limit_s

    def _is_set_aside(self, step: Step, history: History) -> bool:
        """A step that keeps killing its worker, or a session that never lived long enough to publish anything."""
        if self._kills(history.deaths):
            return True
        if not step.stage.sessions or any(self.store.has(other.ref) for other in self.batch.leg(step)):
            return False
        return self._kills([node for other in self.batch.leg(step) for node in self._history(other).deaths])

    def _kills(self, deaths: Sequence[str | None]) -> bool:
        limit = self.context.max_attempts
        return len(deaths) >= limit and blamed(deaths, self._node_id) >= limit

    def _history(self, step: Step) -> History:
        return self.ledger.history(step.ref, self.context.run_id)
