"""What ``mode=`` can be: run, plan, why, status, mirror.  Each takes a planned sweep and returns an exit code."""

import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from pipeline import results, show
from pipeline.config import Config, Mode
from pipeline.errors import UserError, one_line
from pipeline.fingerprint import differences
from pipeline.ledger import Failure, Ledger
from pipeline.plan import Plan, batches
from pipeline.progress import Progress
from pipeline.reporting import report_step
from pipeline.runner import Outcomes, make_runner
from pipeline.step import Step, StepRef
from pipeline.store import Store
from pipeline.tracking import Mirror, review_command
from pipeline.worker import Outcome, RunContext, Status, run_batch
from stages.quantize import weight_group_size, weight_num_bits
from stages.shape import weight_gib

SUCCESS, FAILURE, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
MIRROR_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Sweep:
    """A plan with everything a mode needs around it."""

    plan: Plan
    config: Config
    store: Store
    ledger: Ledger
    console: Console


def run(sweep: Sweep) -> int:
    """Make what is missing, report, mirror, and print the table."""
    missing = sweep.store.missing(sweep.plan.steps.values())
    sweep.store.check_writable(_bytes_to_write(sweep.plan, missing))
    sweep.store.remove_abandoned_drafts()
    results.save(sweep.store, sweep.plan, None)
    outcomes = _run_missing(sweep, missing) if missing else {}
    report = _report(sweep)
    _mirror(sweep, report)
    num_run = sum(outcome.status is Status.succeeded for outcome in outcomes.values())
    confidence = sweep.config.compare.confidence
    show.finished(sweep.console, sweep.store, report, confidence, num_run, _failures(sweep, outcomes))
    show.where(sweep.console, sweep.store.path(report.ref), review_command(sweep.config.tracking, sweep.store.root))
    return FAILURE if sweep.store.missing(sweep.plan.steps.values()) else SUCCESS


def plan(sweep: Sweep) -> int:
    """Print trials, steps to run and to reuse, evaluations and memory; touches nothing."""
    show.plan(sweep.console, sweep.plan, {step.ref for step in sweep.store.missing(sweep.plan.steps.values())})
    return SUCCESS


def why(sweep: Sweep) -> int:
    """For every missing step, the fields in which it differs from the nearest artifact the store has."""
    missing = sweep.store.missing(sweep.plan.steps.values())
    manifests = {stage: list(sweep.store.manifests(stage)) for stage in {step.stage.name for step in missing}}
    absent = {step.fingerprint: step for step in missing}
    for step in missing:
        show.reasons(sweep.console, step, _reasons(step, manifests[step.stage.name], absent))
    sweep.console.print(f"{len(missing)} of {len(sweep.plan.steps)} steps are missing")
    return SUCCESS


def status(sweep: Sweep) -> int:
    """Per trial: done, missing, failed, with the last error and its log."""
    missing = sweep.store.missing(sweep.plan.steps.values())
    failures = {step.ref: failure for step in missing if (failure := sweep.ledger.last_failure(step.ref))}
    show.status(sweep.console, sweep.plan, {step.ref for step in missing}, failures)
    return SUCCESS


def mirror(sweep: Sweep) -> int:
    """Bring MLflow up to date with the store, without running anything."""
    if not sweep.config.tracking.enabled:
        raise UserError("mode=mirror has nowhere to write: tracking.enabled is false")
    report = _report(sweep)
    is_complete = not sweep.store.missing(sweep.plan.steps.values())
    try:
        _mirror_of(sweep).write(sweep.store.path(report.ref), "FINISHED" if is_complete else "FAILED")
    except Exception as error:
        raise UserError(
            f"MLflow could not be written ({one_line(error)}): check tracking.uri, then run again"
        ) from None
    sweep.console.print(f"mirrored {len(sweep.plan.trials)} trials")
    return SUCCESS


MODES: Mapping[Mode, Callable[[Sweep], int]] = {
    Mode.run: run,
    Mode.plan: plan,
    Mode.why: why,
    Mode.status: status,
    Mode.mirror: mirror,
}


def _run_missing(sweep: Sweep, missing: Sequence[Step]) -> Outcomes:
    run_id = f"{time.strftime('%Y%m%dT%H%M%S')}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    context = RunContext(sweep.store.root.resolve(), run_id, sweep.config.cluster.max_attempts)
    work = batches(missing)
    progress = Progress(sweep.plan, missing, work, sweep.ledger, run_id)
    tracker = _Tracker(sweep)

    def on_done(outcomes: Sequence[Outcome]) -> None:
        progress.note(outcomes)
        tracker.batch_done()

    sweep.console.print(f"{len(missing)} of {len(sweep.plan.steps)} steps to run; results go to {sweep.store.root}")
    with progress.shown(), _terminated_like_interrupted():
        return make_runner(sweep.config.cluster).run(work, context, on_done)


class _Tracker:
    """Mirrors into MLflow while the sweep runs, never often, and never in its way."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._next_s = time.monotonic() + MIRROR_EVERY_S

    def batch_done(self) -> None:
        if self._sweep.config.tracking.enabled and time.monotonic() >= self._next_s:
            _mirror(self._sweep, None)
            self._next_s = time.monotonic() + MIRROR_EVERY_S


def _mirror(sweep: Sweep, report: Step | None) -> None:
    """Mirror what there is; a server that is away costs a warning, ``mode=mirror`` catches up."""
    if not sweep.config.tracking.enabled:
        return
    state = "RUNNING" if report is None else _final_state(sweep)
    try:
        _mirror_of(sweep).write(sweep.store.path(report.ref) if report else None, state)
    except Exception as error:  # whatever a tracking server does must not stop a sweep
        sweep.console.print(f"warning: MLflow was not written ({one_line(error)}); mode=mirror catches up later")


def _final_state(sweep: Sweep) -> str:
    return "FAILED" if sweep.store.missing(sweep.plan.steps.values()) else "FINISHED"


def _mirror_of(sweep: Sweep) -> Mirror:
    return Mirror(sweep.plan, sweep.store, sweep.config.tracking)


def _report(sweep: Sweep) -> Step:
    """Publish the report of what the store holds now; a report is a step like any other, made by this process."""
    step = report_step(sweep.plan, sweep.config, sweep.store, sweep.ledger)
    context = RunContext(sweep.store.root.resolve(), f"report-{uuid.uuid4().hex[:6]}", max_attempts=1)
    [outcome] = run_batch(batches([step])[0], context, [])
    if outcome.status is not Status.succeeded:
        raise RuntimeError(f"the report could not be written: {outcome.message}")
    results.save(sweep.store, sweep.plan, step.ref)
    return step


def _failures(sweep: Sweep, outcomes: Outcomes) -> dict[StepRef, Failure]:
    ended_badly = [ref for ref, outcome in outcomes.items() if outcome.status is not Status.succeeded]
    return {ref: failure for ref in ended_badly if (failure := sweep.ledger.last_failure(ref))}


def _reasons(step: Step, manifests: Sequence[Mapping[str, Any]], absent: Mapping[str, Step]) -> list[str]:
    """What sets a missing step apart, nearest artifact first; an input that is missing too explains itself."""
    if not manifests:
        return ["nothing like it is in the store"]
    new = _described(step.payload)
    found = min((differences(_described(m["payload"]), new) for m in manifests), key=len)
    return [_reason(field, old, value, absent) for field, old, value in found] or ["its artifact was removed"]


def _described(payload: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(("fingerprint_version", "stage", "version", "config", "inputs"), payload, strict=True))


def _reason(field: str, old: Any, new: Any, absent: Mapping[str, Step]) -> str:
    if field.startswith("inputs."):
        cause = f"{absent[new].stage.name} is missing too" if new in absent else "another one"
        return f"{field}: {cause}"
    return f"{field.removeprefix('config.')}: {old!r} -> {new!r}"


def _bytes_to_write(plan: Plan, missing: Sequence[Step]) -> int:
    """A floor for the space a run needs: the weights it will write."""
    absent = {step.ref for step in missing}
    needed: dict[StepRef, float] = {}
    for trial in plan.trials.values():
        config = trial.trial.config
        if (shape := config.model.shape) is None:
            continue
        bits, group = weight_num_bits(config.recipe), weight_group_size(config.recipe)
        needed[trial.model] = weight_gib(shape)
        if trial.checkpoint != trial.model:
            needed[trial.checkpoint] = weight_gib(shape, num_bits=bits, group_size=group)
    return int(sum(gib * 2**30 for ref, gib in needed.items() if ref in absent))


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that drafts and the local cluster are cleaned up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
