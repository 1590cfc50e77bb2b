"""Make what is missing: run a plan, or resubmit its failed steps; report, mirror, and print the table."""

import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.config.execution import Verify
from pipeline.config.machine import check_home
from pipeline.context import FAILURE, INTERRUPTED, SUCCESS, PlannedSweep
from pipeline.errors import FailureClass, UserError
from pipeline.planning.memory import bytes_to_write
from pipeline.results import record, terminal
from pipeline.results.console import say
from pipeline.results.environment import check_unchanged, environment
from pipeline.results.mlflow_mirror import Mirror
from pipeline.results.mlflow_place import review_line
from pipeline.results.report_step import report_step
from pipeline.results.resubmission import read, recreated
from pipeline.running.batches import Batch, batches
from pipeline.running.control import BY_USER, budgeted, interruptible, terminable
from pipeline.running.expectation import expect, limits_of, over_budget
from pipeline.running.outcome import Outcome, Outcomes, RunContext, Status
from pipeline.running.progress import Progress
from pipeline.running.runner import make_runner
from pipeline.running.selection import chosen, failed, with_needs
from pipeline.running.time_left import TimeLeft
from pipeline.running.worker import run_batch
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import Failure
from stages.errors import one_line

MIRROR_EVERY_S = 60.0

Choose = Callable[[Sequence[Step]], Sequence[Step]]  # of the missing steps those to run


def run(sweep: PlannedSweep) -> int:
    """Make what is missing, report, mirror, and print the table."""
    check_home()
    return _run(sweep, lambda missing: chosen(sweep.plan, missing, sweep.config.only))


def resubmit(sweep: PlannedSweep) -> int:
    """Like ``run``, for failed steps only: those this store knows of, or those of a file from another one."""
    check_home()
    now, allow = environment(sweep.plan), sweep.config.allow_changed_environment
    if (file := sweep.config.failures["from"]) is not None:
        content = read(Path(file))
        changes = check_unchanged(content["environment"], now, allow)
        wanted = recreated(content, sweep.plan, allow)
    else:
        changes = check_unchanged(record.first_environment(sweep.store, sweep.plan.name), now, allow)
        wanted = None

    def choose(missing: Sequence[Step]) -> Sequence[Step]:
        if wanted is None:
            steps = failed(missing, sweep.store.ledger.failures(missing), sweep.config.failures)
        else:
            steps = with_needs(missing, wanted)
        return chosen(sweep.plan, steps, sweep.config.only)

    return _run(sweep, choose, tuple(changes))


def publish_report(sweep: PlannedSweep, *, is_recorded: bool = False) -> Step:
    """Publish the report of what the store holds now; a report is a step like any other, made by this process.

    The sweep's record names it if ``is_recorded``: modes that only look write none.
    """
    sweep.store.refresh()
    step = report_step(sweep.plan, sweep.config, sweep.store)
    if is_recorded:  # before it is there, so that nobody collects it; until then the last one is the sweep's report
        record.save(sweep.store, sweep.plan, None, upcoming=[step.ref])
    _set_aside_damaged(sweep, [step])  # whatever store.verify says: its numbers are shown
    context = RunContext(sweep.store.address, f"report-{uuid.uuid4().hex[:6]}", max_attempts=1)
    [outcome] = run_batch(batches([step])[0], context, [])
    if outcome.status is not Status.succeeded:
        raise UserError(f"the report could not be written ({outcome.message}): mend that, then run again")
    if is_recorded:
        record.save(sweep.store, sweep.plan, step.ref)
    return step


def mirror_of(sweep: PlannedSweep) -> Mirror:
    """The writer of this sweep's state into MLflow."""
    return Mirror(sweep.plan, sweep.store, sweep.config.tracking)


def _missing(sweep: PlannedSweep) -> list[Step]:
    """What is not in the store; with ``store.verify=full`` what is damaged there is made again as well."""
    steps = sweep.plan.steps.values()
    if sweep.config.store.verify is Verify.full:
        _set_aside_damaged(sweep, steps)
    return sweep.store.missing(steps)


def _set_aside_damaged(sweep: PlannedSweep, steps: Iterable[Step]) -> None:
    damaged = sweep.store.damaged(steps)
    for ref in damaged:
        sweep.store.set_aside(ref)
    terminal.damage(sweep.console, damaged)


def _run(sweep: PlannedSweep, choose: Choose, changes: tuple[str, ...] = ()) -> int:
    tracker = _Tracker(sweep)
    try:
        with terminable():
            return _run_tracked(sweep, choose, changes, tracker)
    except BaseException as error:
        tracker.broke_off("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


def _run_tracked(sweep: PlannedSweep, choose: Choose, changes: tuple[str, ...], tracker: "_Tracker") -> int:
    num_replaced = record.num_replaced(sweep.store, sweep.plan)  # first, since a damaged record ends it here
    steps = choose(_missing(sweep))
    sweep.store.check_writable(bytes_to_write(sweep.plan, steps))
    sweep.store.remove_abandoned_drafts()
    if num_replaced:
        terminal.replaced(sweep.console, sweep.plan.name, num_replaced)
    record.save(sweep.store, sweep.plan, None, environment(sweep.plan))
    # Looked at again: what was there a moment ago may have been collected before the record named it.
    steps = choose(sweep.store.missing(sweep.plan.steps.values()))
    outcomes = _make(sweep, steps, changes, tracker) if steps else {}
    if is_disk_full(outcomes):
        tracker.broke_off("FAILED")
        terminal.disk_full(sweep.console, sweep.store, outcomes)
        return FAILURE
    report = publish_report(sweep, is_recorded=True)
    is_tracked = tracker.write(report, _final_state(sweep, outcomes))
    num_run = sum(outcome.status is Status.succeeded for outcome in outcomes.values())
    confidence = sweep.config.compare.confidence
    asked = {step.ref.short for step in steps}
    terminal.finished(sweep.console, sweep.store, report, confidence, num_run, _failures(sweep, outcomes), asked)
    review = review_line(sweep.config.tracking, sweep.store.local, tracker.page) if is_tracked else None
    terminal.where(sweep.console, sweep.store.path(report.ref), review)
    return _exit_code(sweep, steps, outcomes)


def is_disk_full(outcomes: Outcomes) -> bool:
    """Whether the run ended because nothing more can be written."""
    return any(outcome.failure_class is FailureClass.disk for outcome in outcomes.values())


def _exit_code(sweep: PlannedSweep, steps: Sequence[Step], outcomes: Outcomes) -> int:
    for line in _stops(outcomes):
        say(sweep.console, f"{line}; the same command goes on where it was")
    if any(outcome.message == BY_USER for outcome in outcomes.values()):
        return INTERRUPTED
    return FAILURE if sweep.store.missing(steps) else SUCCESS


def _stops(outcomes: Outcomes) -> list[str]:
    """Why steps were not run, and how many."""
    reasons = Counter(outcome.message for outcome in outcomes.values() if outcome.status is Status.not_run)
    return [f"{reason}: {number} steps were not run" for reason, number in reasons.items()]


def _make(sweep: PlannedSweep, steps: Sequence[Step], changes: tuple[str, ...], tracker: "_Tracker") -> Outcomes:
    run_id = f"{time.strftime('%Y%m%dT%H%M%S')}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    cluster = sweep.config.cluster
    expected = expect(sweep.plan, steps, sweep.store, cluster)
    work, limits = expected.batches, limits_of(sweep.config.budget, sweep.plan)
    time_left = TimeLeft(work, expected.end_s, expected.capacity)
    progress = Progress(sweep.plan, work, time_left, sweep.store.ledger, run_id)

    def on_done(outcomes: Sequence[Outcome]) -> None:
        progress.note(outcomes)
        tracker.batch_done()

    def on_ready() -> None:
        tell(f"{len(steps)} of {len(sweep.plan.steps)} steps to run; results go to {sweep.store.url}")
        for line in over_budget(expected, limits):
            tell(line)

    def request_stop(reason: str) -> None:
        sweep.store.ledger.request_stop(run_id, reason)
        progress.announce(f"{reason}: finishing what is in flight; Ctrl-C stops now")

    def note(line: str) -> None:
        with suppress(OSError):
            sweep.store.ledger.tell(sweep.plan.name, run_id, line)

    def tell(line: str) -> None:
        progress.tell(line)
        note(line)

    context = RunContext(
        sweep.store.address,
        run_id,
        cluster.max_attempts,
        timeout_s=_timeouts_s(work, cluster.timeout_s),
        back_off_s=cluster.back_off_s,
        changes=changes,
    )
    runner = make_runner(cluster, sweep.config.max_parallel, tell, expected.urgency)
    try:
        with sweep.store.ledger.alive(run_id), progress.shown(), interruptible(request_stop):
            with budgeted(limits, progress.running_steps, request_stop):
                outcomes = runner.run(work, context, on_done, on_ready)
        for line in _stops(outcomes):
            note(line)
        return outcomes
    except KeyboardInterrupt:
        with suppress(OSError):
            for step in progress.running_steps():
                with suppress(OSError):
                    sweep.store.ledger.stopped(step.ref, run_id)
        raise
    finally:
        sweep.store.ledger.clear_stop(run_id)


def _timeouts_s(work: Sequence[Batch], limits: dict[str, float]) -> dict[str, float]:
    stages = {step.stage.name for batch in work for step in batch.steps}
    return {stage: limit for stage in stages if (limit := limits.get(stage, limits.get("default"))) is not None}


class _Tracker:
    """Mirrors into MLflow while the sweep runs, never often, and never in its way."""

    def __init__(self, sweep: PlannedSweep) -> None:
        self._sweep = sweep
        self._next_s = time.monotonic() + MIRROR_EVERY_S
        self._has_written = False
        self.page: str | None = None  # of what was written, in MLflow

    def batch_done(self) -> None:
        """Mirror if that was a while ago."""
        if time.monotonic() >= self._next_s:
            self.write(None, "RUNNING")
            self._next_s = time.monotonic() + MIRROR_EVERY_S

    def write(self, report: Step | None, state: str) -> bool:
        """Mirror what there is, and say whether it is there now.

        A server that is away costs a warning, ``mode=mirror`` catches up.
        """
        if not self._sweep.config.tracking.enabled:
            return False
        self._has_written = True
        try:
            self.page = mirror_of(self._sweep).write(self._sweep.store.path(report.ref) if report else None, state)
        except Exception as error:  # whatever a tracking server does must not stop a sweep
            said = f"warning: MLflow was not written ({one_line(error, limit=1000)}); mode=mirror catches up later"
            say(self._sweep.console, said)
            return False
        return True

    def broke_off(self, state: str) -> None:
        """Let no run that was shown as running be shown so for ever."""
        if self._has_written:
            with suppress(Exception):
                mirror_of(self._sweep).end(state)


def _final_state(sweep: PlannedSweep, outcomes: Outcomes) -> str:
    if any(outcome.message == BY_USER for outcome in outcomes.values()):
        return "KILLED"
    return "FAILED" if sweep.store.missing(sweep.plan.steps.values()) else "FINISHED"


def _failures(sweep: PlannedSweep, outcomes: Outcomes) -> dict[StepRef, Failure]:
    ended_badly = [ref for ref, outcome in outcomes.items() if outcome.status in (Status.failed, Status.skipped)]
    return {ref: failure for ref in ended_badly if (failure := sweep.store.ledger.last_failure(ref))}
