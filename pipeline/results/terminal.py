"""What a person reads in the terminal: plans, reasons, states and the final table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import FailureClass
from pipeline.planning.plan import Plan
from pipeline.results.plan_summary import PlanSummary, TrialSummary
from pipeline.running.outcome import Outcome, Status
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import Failure
from pipeline.store.storage import Stored
from pipeline.store.store import Store
from stages.report.artifact import HTML, read_serving, read_suites, read_summary
from stages.report.config import FailureRow
from stages.units import GIB

NOTHING = "–"
MAX_FAILURES_SHOWN = 10


def plan(console: Console, summary: PlanSummary) -> None:
    """Trials with their memory, steps by stage, and the whole."""
    trials = _table("trial", "base", "GPUs", "weights GiB", "GiB/GPU needed", "evaluations", "to run")
    for trial in summary.trials:
        trials.add_row(*_trial_cells(trial))
    console.print(trials)
    stages = _table("stage", "to run", "to reuse")
    for stage in summary.stages:
        stages.add_row(stage.name, f"{stage.num_to_run:,}", f"{stage.num_to_reuse:,}")
    console.print(stages)
    console.print(
        f"{len(summary.trials)} trials, {summary.num_steps:,} steps ({summary.num_steps_to_run:,} to run), "
        f"{summary.num_evaluations:,} evaluations ({summary.num_evaluations_to_run:,} to run); plan "
        f"{summary.fingerprint[:12]}"
    )
    for name, readers in summary.missing_data.items():
        console.print(f"[red]missing[/] data set {name}: no results for {', '.join(readers)}", highlight=False)
    console.print("GiB/GPU needed: weights and the keys and values of one full context, over the engine's ranks.")


def reasons(console: Console, step: Step, lines: Sequence[str]) -> None:
    """Why one step is missing."""
    console.print(f"[bold]{step.ref.short}[/] {escape(step.label)}")
    for line in lines:
        console.print(f"    {escape(line)}")


def status(
    console: Console,
    plan: Plan,
    missing: set[StepRef],
    failures: Mapping[StepRef, Failure],
    running: set[StepRef],
) -> None:
    """Per trial what is done, running, missing and failed; then every failure with its log."""
    states = ("done", "running", "missing", "failed", "skipped")
    table = _table("trial", *states)
    for name, steps in _by_trial(plan).items():
        ended = Counter(_state(step, missing, failures, running) for step in steps)
        table.add_row(name, *(str(ended[state] or "") for state in states))
    console.print(table)
    _print_failures(console, plan, failures)
    by_class = Counter(failure.failure_class.value for failure in failures.values())
    if by_class:
        console.print("by class: " + ", ".join(f"{name} {number}" for name, number in sorted(by_class.items())))


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
        console.print(f"{each.num_bytes / GIB:8.3f} GiB  {each.location}", soft_wrap=True, highlight=False)
    if not unused:
        console.print("nothing to remove: a sweep refers to every artifact")
        return
    total_gib = sum(each.num_bytes for each in unused) / GIB
    verb = "removed" if is_deleted else "no sweep refers to; gc.delete=true removes them"
    console.print(f"{len(unused)} artifacts of {total_gib:.3f} GiB {verb}")


def damage(console: Console, damaged: Mapping[StepRef, str]) -> None:
    """What a full verification found wrong."""
    for ref, what in damaged.items():
        console.print(
            f"[red]damaged[/] {ref.short}: {escape(what)}; moved aside, it will be made again", soft_wrap=True
        )


def disk_full(console: Console, store: Store, outcomes: Mapping[StepRef, Outcome]) -> None:
    """Why the run stopped when nothing could be written any more."""
    first = next(outcome for outcome in outcomes.values() if outcome.failure_class is FailureClass.disk)
    num_done = sum(outcome.status is Status.succeeded for outcome in outcomes.values())
    console.print(f"[red]failed (disk)[/] {first.ref.short}: {escape(first.message)}", soft_wrap=True)
    console.print(
        f"stopped: {num_done} steps were finished and kept, none half-written; free space on {store.local}, run again",
        soft_wrap=True,
    )


def replaced(console: Console, name: str, number: int) -> None:
    """That a sweep's name stands for another plan from now on."""
    console.print(
        f"note: until now the sweep {name!r} was another plan; {number} results of it are not in this one. They stay "
        "in the store, but pipeline.results.results and mode=gc know a name's latest plan: sweep.name=NAME keeps both",
        soft_wrap=True,
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
    """The final table, and whatever was asked for, has no number and why."""
    rows = read_summary(store.path(report.ref)).to_pylist()
    interval = f"{100 * confidence:g} % interval"
    table = _table("trial", "task", "n", "score", interval, "recovery", "difference", interval, "against base", "GiB")
    for row in rows:
        table.add_row(*_summary_cells(row))
    if rows:
        console.print(table)
    if suites := read_suites(store.path(report.ref)).to_pylist():
        console.print(_suites_table(suites, interval))
    if (points := read_serving(store.path(report.ref))) is not None:
        console.print(_serving_table(points.to_pylist()))
    for note in dict.fromkeys(trial.notes for trial in report.config.trials if trial.notes):
        console.print(f"note: {note}", highlight=False)
    for row in rows:
        if row["num_missing"] or row["num_truncated"]:
            counts = f"{row['num_missing'] or 0} documents missing, {row['num_truncated'] or 0} cut to fit"
            console.print(f"note: {row['trial']} {row['task']}: {counts}", highlight=False)
    for trial in report.config.trials:
        if trial.mixed:
            console.print(f"note: {trial.name}: {escape(trial.mixed)}", highlight=False, soft_wrap=True)
    told = [failure for failure in report.config.failures if failure.status != "missing" or failure.step in asked]
    causes_first = sorted(told, key=lambda failure: failure.status == "skipped")
    for failure in causes_first[:MAX_FAILURES_SHOWN]:
        label = f"{failure.status}{f' ({failure.failure_class})' if failure.failure_class else ''}"
        console.print(f"[red]{label}[/] {escape(_place(failure))}: {escape(failure.message)}")
    logs = list(dict.fromkeys(failure.log for failure in failures.values() if failure.log))
    for log in logs[:MAX_FAILURES_SHOWN]:
        console.print(f"log: {log}", soft_wrap=True)
    if (num_more := len(told) - MAX_FAILURES_SHOWN) > 0:
        console.print(f"and {num_more} more steps without a result: mode=status lists them, and so does the report")
    if num_others := len(report.config.failures) - len(told):
        console.print(f"{num_others} steps were not asked for and have no result yet")
    console.print(f"{num_run} steps run")


def _place(failure: FailureRow) -> str:
    return " ".join(part for part in (failure.step, failure.trial, failure.task) if part)


def where(console: Console, report_dir: Path, review: str | None) -> None:
    """Where to read on."""
    console.print(f"report: {report_dir / HTML}", soft_wrap=True, highlight=False)
    if review is not None:
        console.print(f"review: {review}", soft_wrap=True, highlight=False)


def _suites_table(suites: Sequence[Mapping[str, object]], interval: str) -> Table:
    table = _table("trial", "suite", "mean", "of", "recovery", interval)
    for suite in suites:
        table.add_row(
            *(escape(str(suite[name])) for name in ("trial", "suite")),
            _number(suite["mean"], "{:.2f}" if suite["normalized"] else "{:.4f}"),
            "normalized scores, up to 100" if suite["normalized"] else "scores",
            _number(suite["recovery"], "{:.2%}"),
            _interval(suite["recovery_low"], suite["recovery_high"], "{:.2%}"),
        )
    return table


def _serving_table(points: Sequence[Mapping[str, object]]) -> Table:
    table = _table("trial", "workload", "mode", "requests/s", "latency s", "first token ms", "queries/$", "valid")
    for point in points:
        table.add_row(
            *(str(point[name]) for name in ("trial", "workload", "mode")),
            *(_number(point[name], "{:.3g}") for name in ("requests_per_s", "latency_s_median", "ttft_ms_median")),
            _number(point["queries_per_usd"], "{:,.0f}"),
            "yes" if point["is_valid"] else "no: the report says why",
        )
    return table


def _summary_cells(row: Mapping[str, object]) -> list[str]:
    return [
        str(row["trial"]),
        str(row["task"]),
        _number(row["n"], "{:d}"),
        _number(row["score"], "{:.4f}"),
        _interval(row["score_low"], row["score_high"], "{:.4f}"),
        _number(row["recovery"], "{:.2%}"),
        _number(row["difference"], "{:+.4f}"),
        _interval(row["difference_low"], row["difference_high"], "{:+.4f}"),
        str(row["verdict"] or NOTHING),
        _number(row["size_gib"], "{:.3f}"),
    ]


def _number(value: object, pattern: str) -> str:
    return NOTHING if value is None else pattern.format(value)


def _interval(low: object, high: object, pattern: str) -> str:
    return (
        NOTHING
        if low is None or high is None
        else f"[{pattern.format(low)}, {pattern.format(high)}]".replace("[", "\\[")
    )


def _trial_cells(trial: TrialSummary) -> list[str]:
    return [
        trial.name,
        trial.base or "",
        str(trial.num_gpus or NOTHING),
        f"{trial.memory.weights_gib:.1f}" if trial.memory else NOTHING,
        f"{trial.memory.per_gpu_gib:.1f}" if trial.memory else NOTHING,
        f"{trial.num_evaluations:,}",
        f"{trial.num_to_run:,}",
    ]


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


def _print_failures(console: Console, plan: Plan, failures: Mapping[StepRef, Failure]) -> None:
    for ref, failure in failures.items():
        console.print(f"[red]{failure.failure_class.value}[/] {ref.short} {escape(plan.steps[ref].label)}")
        console.print(f"    {escape(failure.message)} (attempt {failure.num_attempts})")
        if failure.log:
            console.print(f"    log: {failure.log}", soft_wrap=True)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    return table
