"""What ``mode=`` can be.  Each takes a sweep, planned once its plan is looked at, and returns an exit code."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.command_line import shown
from pipeline.context import SUCCESS, PlannedSweep
from pipeline.driver import mirror_of, publish_report, resubmit, run
from pipeline.errors import UserError
from pipeline.results import record, terminal
from pipeline.results.console import say
from pipeline.results.environment import environment
from pipeline.results.garbage import collect
from pipeline.results.mlflow_place import named_by
from pipeline.results.plan_summary import summarize
from pipeline.results.resubmission import export
from pipeline.steps.fingerprint import described, differences
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import Failure
from stages.errors import one_line


def plan(sweep: PlannedSweep) -> int:
    """Print trials, steps to run and to reuse, evaluations, memory, time and money; touches nothing."""
    terminal.plan(sweep.console, summarize(sweep.plan, sweep.store, sweep.config))
    return SUCCESS


def why(sweep: PlannedSweep) -> int:
    """For every missing step, the fields in which it differs from the nearest artifact the store has."""
    missing = sweep.store.missing(sweep.plan.steps.values())
    manifests = {stage: list(sweep.store.manifests(stage)) for stage in {step.stage.name for step in missing}}
    absent = {step.fingerprint: step for step in missing}
    for step in missing:
        terminal.reasons(sweep.console, step, _reasons(step, manifests[step.stage.name], absent))
    say(sweep.console, f"{len(missing)} of {len(sweep.plan.steps)} steps are missing")
    return SUCCESS


def status(sweep: PlannedSweep) -> int:
    """Per trial and class: done, running, missing, failed, with the last error and its log; exports the failed."""
    missing = sweep.store.missing(sweep.plan.steps.values())
    failures = sweep.store.ledger.failures(missing)
    running = sweep.store.ledger.running(step for step in missing if step.ref not in failures)
    terminal.status(sweep.console, sweep.plan, {step.ref for step in missing}, failures, running)
    if missing:
        terminal.told(sweep.console, sweep.store.ledger.told(sweep.plan.name))
    if (file := sweep.config.failures["export"]) is not None:
        num_steps = _export(sweep, Path(file), failures)
        command = f"mode=resubmit {shown('failures.from', file)}"
        say(sweep.console, f"{num_steps} failed steps written; anywhere: {command}")
    return SUCCESS


def mirror(sweep: PlannedSweep) -> int:
    """Bring MLflow up to date with the store, without running anything."""
    if not sweep.config.tracking.enabled:
        raise UserError("mode=mirror has nowhere to write: tracking.enabled is false")
    report = publish_report(sweep)
    is_complete = not sweep.store.missing(sweep.plan.steps.values())
    try:
        mirror_of(sweep).write(sweep.store.path(report.ref), "FINISHED" if is_complete else "FAILED")
    except UserError:
        raise
    except Exception as error:
        place = named_by(sweep.config.tracking)
        raise UserError(f"MLflow could not be written ({one_line(error)}): check {place}, then run again") from None
    say(sweep.console, f"mirrored {len(sweep.plan.trials)} trials")
    return SUCCESS


def gc(sweep: PlannedSweep) -> int:
    """List what no sweep of this store refers to, whichever is named, and remove it if ``gc.delete`` says so."""
    unused = collect(sweep.store, delete=sweep.config.gc.delete)
    terminal.garbage(sweep.console, unused, sweep.config.gc.delete, sweep.store.unproven())
    return SUCCESS


MODES: Mapping[str, Callable[[PlannedSweep], int]] = {
    "run": run,
    "resubmit": resubmit,
    "plan": plan,
    "why": why,
    "status": status,
    "mirror": mirror,
    "gc": gc,
}


MAKING = (run, resubmit)  # the others only look at what there is


def mode_named(name: str) -> Callable[[PlannedSweep], int]:
    """What ``mode=name`` does; raises UserError where there is no such mode."""
    if name not in MODES:
        raise UserError(f"mode={name}: there are {', '.join(MODES)}")
    return MODES[name]


def _export(sweep: PlannedSweep, file: Path, failures: Mapping[StepRef, Failure]) -> int:
    then = record.first_environment(sweep.store, sweep.plan.name) or environment(sweep.plan)
    return export(file, sweep.plan, failures, sweep.overrides, then)


def _reasons(step: Step, manifests: Sequence[Mapping[str, Any]], absent: Mapping[str, Step]) -> list[str]:
    """What sets a missing step apart, nearest artifact first; an input that is missing too explains itself."""
    if not manifests:
        return ["nothing like it is in the store"]
    new = described(step.payload)
    found = min((differences(described(m["payload"]), new) for m in manifests), key=len)
    return [_reason(field, old, value, absent) for field, old, value in found] or ["its artifact was removed"]


def _reason(field: str, old: Any, new: Any, absent: Mapping[str, Step]) -> str:
    if field.startswith("inputs."):
        cause = f"{absent[new].stage.name} is missing too" if new in absent else "another one"
        return f"{field}: {cause}"
    return f"{field.removeprefix('config.')}: {old!r} -> {new!r}"
