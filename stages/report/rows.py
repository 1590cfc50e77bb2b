"""What a report is about: one summary row for each trial and task, and one for each trial and suite."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from stages.compare.artifact import Comparison, Error, Numbers, read_comparison
from stages.inference import critical_value, ratio_interval
from stages.report.artifact import Row, SuiteMean, SummaryCell
from stages.report.config import FailureRow, SuiteRow, TrialRow
from stages.report.endings import endings
from stages.statistics import NO_INTERVAL, Interval, recovery_of

Comparisons = Mapping[tuple[str, str], Comparison]  # by trial and task


def read_comparisons(
    trials: Sequence[TrialRow], tasks: Sequence[str], inputs: Mapping[str, Path]
) -> dict[tuple[str, str], Comparison]:
    """The comparisons among ``inputs`` (``compare/<trial>/<task>``), by trial and task."""
    places = {(trial.name, task): f"compare/{trial.name}/{task}" for trial in trials for task in tasks}
    return {place: read_comparison(inputs[name]) for place, name in places.items() if name in inputs}


def summary_rows(
    trials: Sequence[TrialRow],
    tasks: Sequence[str],
    failures: Sequence[FailureRow],
    comparisons: Comparisons,
) -> Iterator[Row]:
    """A row of SUMMARY_SCHEMA for every trial and task, measured or not."""
    for trial in trials:
        for task in tasks:
            compared = comparisons.get((trial.name, task))
            numbers = asdict(compared.facts.headline if compared else Numbers())
            cell = SummaryCell(
                trial=trial.name,
                model=trial.model,
                recipe=trial.recipe,
                is_base=trial.is_base,
                size_gib=trial.size_gib,
                task=task,
                status=_status(trial.name, task, compared, failures),
                metric=compared.facts.metric if compared else None,
                note="; ".join(endings(numbers)) or None,
            )
            yield asdict(cell) | numbers


def suite_rows(
    trials: Sequence[TrialRow],
    suites: Sequence[SuiteRow],
    rows: Sequence[Row],
    comparisons: Comparisons,
) -> Iterator[SuiteMean]:
    """Plain means of the suites' tasks, and their recoveries; None if a member is missing or of another arithmetic.

    A recovery is of the documents that both trials were scored on, as its interval is; the means are of all.  Tasks
    where higher is better have no mean with those where lower is.
    """
    by_cell = {(row["trial"], row["task"]): row for row in rows}
    for trial in trials:
        for suite in suites:
            cells = [by_cell.get((trial.name, task), {}) for task in suite.tasks]
            directions = {cell.get("higher_is_better") is False for cell in cells if cell}
            arithmetics = {arithmetic_of(comparisons.get((trial.name, task))) for task in suite.tasks} - {None}
            if len(directions) > 1 or len(arithmetics) > 1:
                cells = [{}]
            lower_is_better = directions == {True}
            columns = ("normalized", "base_normalized") if suite.normalized else ("score", "base_score")
            mean, base_mean = (_mean([cell.get(name) for cell in cells]) for name in columns)
            paired, paired_base = (_mean([cell.get(f"paired_{name}") for cell in cells]) for name in columns)
            compared = [comparisons.get((trial.name, task)) for task in suite.tasks]
            recovery = recovery_of(paired, paired_base, lower_is_better)
            low, high = NO_INTERVAL
            if recovery is not None and paired is not None and paired_base is not None:
                errors = [_error(comparison, suite.normalized) for comparison in compared]
                confidence = min((each.facts.confidence for each in compared if each is not None), default=0.95)
                low, high = _recovery_interval(errors, paired, paired_base, confidence, lower_is_better)
            yield SuiteMean(
                trial=trial.name,
                suite=suite.name,
                normalized=suite.normalized,
                mean=mean,
                base_mean=base_mean,
                recovery=recovery,
                recovery_low=low,
                recovery_high=high,
            )


def arithmetic_of(comparison: Comparison | None) -> str | None:
    """What a trial's task was multiplied with, as JSON, which all its leaves were alike; None where it is not known."""
    leaves = () if comparison is None else comparison.facts.leaves.values()
    known = (leaf.arithmetic for leaf in leaves if leaf is not None and leaf.arithmetic is not None)
    return next((json.dumps(each, sort_keys=True) for each in known), None)


def _error(comparison: Comparison | None, is_normalized: bool) -> Error | None:
    if comparison is None:
        return None
    errors = comparison.facts.errors
    return errors.normalized if is_normalized else errors.raw


def _recovery_interval(
    errors: Sequence[Error | None], paired: float, paired_base: float, confidence: float, lower_is_better: bool
) -> Interval:
    """Of the ratio of means over tasks that share no documents: a suite's composition is fixed and not drawn."""
    known, num = [error for error in errors if error is not None], len(errors)
    if len(known) < num:
        return NO_INTERVAL
    variance, base, covariance = (
        sum(getattr(error, name) for error in known) / num**2 for name in ("difference", "base", "covariance")
    )
    difference, critical = paired - paired_base, critical_value(confidence)
    half = critical * math.sqrt(variance)
    ends = difference - half, difference + half
    low, high = ratio_interval(paired_base, difference, ends, covariance, base, critical)
    if low is None or high is None or not lower_is_better:
        return low, high
    return (1 / high if high > 0 else None), (1 / low if low > 0 else None)


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known and len(known) == len(scores) else None


def _status(trial: str, task: str, compared: Comparison | None, failures: Sequence[FailureRow]) -> str:
    if compared is not None:
        return "measured" if compared.facts.headline.score is not None else "incomplete"
    statuses = {failure.status for failure in failures if failure.trial == trial and failure.task in (task, None)}
    return next((status for status in ("failed", "skipped") if status in statuses), "missing")
