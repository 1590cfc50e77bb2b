"""What a person reads in the terminal: plans, reasons, states and the final table."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from pipeline.errors import FailureClass
from pipeline.planning.memory import GpuMemory
from pipeline.planning.plan import Plan
from pipeline.results.console import add_row, new_table, say
from pipeline.results.expectation_shown import expectation_lines, stage_cost_cells
from pipeline.results.failures_shown import Told, say_briefly, say_fully
from pipeline.results.final_tables import NOTHING, tables_of
from pipeline.results.plan_summary import PlanSummary, TrialSummary
from pipeline.results.power_shown import say_power
from pipeline.running.outcome import Outcome, Status
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import Failure
from pipeline.store.storage import Stored
from pipeline.store.store import Store
from stages.report.artifact import HTML, MOST_SENTENCES, Summary, read_document, read_serving
from stages.report.config import FailureRow
from stages.units import GIB

MAX_FAILURES_SHOWN = 10  # kinds of them


def plan(console: Console, summary: PlanSummary) -> None:
    """Trials with their memory, steps by stage, and the whole."""
    trials = new_table("trial", "base", "GPUs", "weights GiB", "GiB/GPU needed", "evaluations", "to run", "computed by")
    for trial in summary.trials:
        add_row(trials, _trial_cells(trial))
    console.print(trials)
    stages = new_table("stage", "to run", "to reuse", "takes", "GPU-hours")
    for stage in summary.stages:
        cells = (stage.name, f"{stage.num_to_run:,}", f"{stage.num_to_reuse:,}")
        add_row(stages, (*cells, *stage_cost_cells(stage.cost)))
    console.print(stages)
    again = f", {summary.num_again:,} of them once more" if summary.num_again else ""
    say(
        console,
        f"{len(summary.trials)} trials, {summary.num_steps:,} steps ({summary.num_steps_to_run:,} to run), "
        f"{summary.num_evaluations:,} evaluations{again} ({summary.num_evaluations_to_run:,} to run); plan "
        f"{summary.fingerprint[:12]}",
    )
    for name, readers in summary.missing_data.items():
        say(console, ("missing", "red"), f" data set {name}: no results for {', '.join(readers)}")
    for line in _computed(summary.trials):
        say(console, f"note: {line}")
    say(console, "GiB/GPU needed: weights and the keys and values of one full context, over the engine's ranks.")
    for line in expectation_lines(summary.expected, summary.bytes_to_write):
        say(console, line)
    say_power(console, summary.power, summary.gates)


def reasons(console: Console, step: Step, lines: Sequence[str]) -> None:
    """Why one step is missing."""
    say(console, (step.ref.short, "bold"), f" {step.label}")
    for line in lines:
        say(console, f"    {line}")


def status(
    console: Console,
    plan: Plan,
    missing: set[StepRef],
    failures: Mapping[StepRef, Failure],
    running: set[StepRef],
) -> None:
    """Per trial what is done, running, missing and failed; then every failure with its log."""
    states = ("done", "running", "missing", "failed", "skipped")
    table = new_table("trial", *states)
    for name, steps in _by_trial(plan).items():
        ended = Counter(_state(step, missing, failures, running) for step in steps)
        add_row(table, (name, *(str(ended[state] or "") for state in states)))
    console.print(table)
    say_fully(console, [_told(plan.steps[ref], failure) for ref, failure in failures.items()])
    by_class = Counter(failure.failure_class.value for failure in failures.values())
    if by_class:
        say(console, "by class: " + ", ".join(f"{name} {number}" for name, number in sorted(by_class.items())))


def told(console: Console, lines: Sequence[tuple[float, str]]) -> None:
    """What happened to the latest run, beside its steps."""
    for time_s, line in lines:
        when = datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M:%S")
        say(console, f"{when} {line}")


def garbage(console: Console, unused: Sequence[Stored], is_deleted: bool, unproven: Sequence[str]) -> None:
    """What a garbage collection found, largest first, and what it leaves to whoever knows what that is."""
    for place in unproven:
        console.print(
            f"left alone: {place} was moved aside, and has no manifest that proves what it is or holds other files; "
            "if you need nothing of it, remove it",
            soft_wrap=True,
            highlight=False,
        )
    for each in sorted(unused, key=lambda each: -each.num_bytes):
        say(console, f"{each.num_bytes / GIB:8.3f} GiB  {each.location}")
    if not unused:
        say(console, "nothing to remove: sweeps refer to every artifact that holds nothing else")
        return
    total_gib = sum(each.num_bytes for each in unused) / GIB
    verb = "removed" if is_deleted else "no sweep refers to; gc.delete=true removes them"
    say(console, f"{len(unused)} artifacts of {total_gib:.3f} GiB {verb}")


def damage(console: Console, damaged: Mapping[StepRef, str]) -> None:
    """What a full verification found wrong."""
    for ref, what in damaged.items():
        say(console, ("damaged", "red"), f" {ref.short}: {what}; moved aside, it will be made again")


def disk_full(console: Console, store: Store, outcomes: Mapping[StepRef, Outcome]) -> None:
    """Why the run stopped when nothing could be written any more."""
    first = next(outcome for outcome in outcomes.values() if outcome.failure_class is FailureClass.disk)
    num_done = sum(outcome.status is Status.succeeded for outcome in outcomes.values())
    say(console, ("failed (disk)", "red"), f" {first.ref.short}: {first.message}")
    say(
        console,
        f"stopped: {num_done} steps were finished and kept, none half-written; free space on {store.local}, run again",
    )


def replaced(console: Console, name: str, number: int) -> None:
    """That a sweep's name stands for another plan from now on."""
    say(
        console,
        f"note: until now the sweep {name!r} was another plan; {number} results of it are not in this one. They stay "
        "in the store, but pipeline.results.results and mode=gc know a name's latest plan: sweep.name=NAME keeps both",
    )


def finished(
    console: Console,
    store: Store,
    report: Step,
    confidence: float,
    num_run: int,
    failures: Mapping[StepRef, Failure],
    asked: set[str],
) -> None:
    """What to ship, the final tables, and whatever was asked for, has no number and why."""
    document = read_document(store.path(report.ref))
    for line in what_to_ship(document):
        say(console, line)
    for table in tables_of(document, read_serving(store.path(report.ref)), confidence):
        console.print(table)
    for note in dict.fromkeys(trial.notes for trial in report.config.trials if trial.notes):
        say(console, f"note: {note}")
    for row in document.rows:
        if row["note"]:
            say(console, f"note: {row['trial']} {row['task']}: {row['note']}")
    for trial in report.config.trials:
        for caution in trial.cautions:
            say(console, f"note: {trial.name}: {caution}")
    _say_what_is_missing(console, report.config.failures, failures, asked)
    say(console, f"{num_run} steps run")


def what_to_ship(document: Summary) -> Iterator[str]:
    """A sentence a model; of several models also how many of all formats may be shipped, and the first sentences."""
    sentences = [
        (f"{model}: " if len(document.sentences) > 1 else "") + text for model, text in document.sentences.items()
    ]
    if len(sentences) > 1 and document.headline:
        yield f"{document.headline}."
    yield from sentences[:MOST_SENTENCES]
    if len(sentences) > MOST_SENTENCES:
        yield f"{len(sentences) - MOST_SENTENCES} models more are in the report"


def _say_what_is_missing(
    console: Console, rows: Sequence[FailureRow], failures: Mapping[StepRef, Failure], asked: set[str]
) -> None:
    """Of what was asked for; causes come before what was skipped because of them."""
    logs = {ref.short: failure.log for ref, failure in failures.items()}
    told = [row for row in rows if row.status != "missing" or row.step in asked]
    causes_first = sorted(told, key=lambda row: row.status == "skipped")
    ended = ((row, f"{row.status}{f' ({row.failure_class})' if row.failure_class else ''}") for row in causes_first)
    say_briefly(
        console,
        [Told(how, row.message, _place(row), logs.get(row.step)) for row, how in ended],
        MAX_FAILURES_SHOWN,
    )
    if num_others := len(rows) - len(told):
        say(console, f"{num_others} steps were not asked for and have no result yet")


def _place(failure: FailureRow) -> str:
    return " ".join(part for part in (failure.step, failure.trial, failure.task) if part)


def where(console: Console, report_dir: Path, review: str | None) -> None:
    """Where to read on."""
    say(console, f"report: {report_dir / HTML}")
    if review is not None:
        say(console, f"review: {review}")


def _trial_cells(trial: TrialSummary) -> list[str]:
    return [
        trial.name,
        trial.base or "",
        f"{trial.num_gpus:g}" if trial.num_gpus else NOTHING,
        f"{trial.memory.weights_gib:.1f}" if trial.memory else NOTHING,
        _needed(trial.memory) if trial.memory else NOTHING,
        f"{trial.num_evaluations:,}",
        f"{trial.num_to_run:,}",
        trial.computed.shown if trial.computed and trial.computed.kernels else NOTHING,
    ]


def _needed(memory: GpuMemory) -> str:
    """Of a model whose keys and values are not known no less than its weights."""
    return f"{'≥ ' if memory.context_gib is None else ''}{memory.per_gpu_gib:.1f}"


def _computed(trials: Sequence[TrialSummary]) -> Iterator[str]:
    """Where a format is computed as another, or is emulated, and where the table of kernels does not say."""
    unknown: dict[str, list[str]] = {}
    for trial in trials:
        if trial.computed is not None and trial.computed.unknown is not None:
            unknown.setdefault(trial.computed.unknown, []).append(trial.name)
        elif trial.computed is not None and trial.computed.caution is not None:
            yield f"{trial.name}: {trial.computed.caution}"
    for why, names in unknown.items():
        yield f"{', '.join(names)}: what computes the format is not known, {why}"


def _by_trial(plan: Plan) -> dict[str, list[Step]]:
    trials: dict[str, list[Step]] = {}
    for step in plan.steps.values():
        trials.setdefault(step.trial or "(shared)", []).append(step)
    return trials


def _state(step: Step, missing: set[StepRef], failures: Mapping[StepRef, Failure], running: set[StepRef]) -> str:
    if step.ref not in missing:
        return "done"
    if step.ref not in failures:
        return "running" if step.ref in running else "missing"
    return "skipped" if failures[step.ref].failure_class is FailureClass.upstream else "failed"


def _told(step: Step, failure: Failure) -> Told:
    place = f"{step.ref.short} {step.label} (attempt {failure.num_attempts})"
    return Told(failure.failure_class.value, failure.message, place, failure.log)
