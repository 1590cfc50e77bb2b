"""What a report is about: one summary row for each trial and task."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from stages.checkpoints.kernels import SIMULATED, shown
from stages.compare.artifact import Comparison, Numbers, read_comparison
from stages.report.artifact import Row, SummaryCell
from stages.report.config import FailureRow, TrialRow
from stages.report.endings import endings

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
                quantized=trial.quantized,
                task=task,
                status=_status(trial.name, task, compared, failures),
                metric=compared.facts.metric if compared else None,
                note="; ".join(endings(numbers)) or None,
                computed=computed_by(compared),
            )
            yield asdict(cell) | numbers


def arithmetic_of(comparison: Comparison | None) -> str | None:
    """What a trial's task was multiplied with, as JSON, which all its leaves were alike; None where it is not known."""
    leaves = () if comparison is None else comparison.facts.leaves.values()
    known = (leaf.arithmetic for leaf in leaves if leaf is not None and leaf.arithmetic is not None)
    return next((json.dumps(each, sort_keys=True) for each in known), None)


def computed_by(comparison: Comparison | None) -> str | None:
    """Kernels of a trial's task, and what they make of its format; None where it is dense, or that is not known."""
    if (found := arithmetic_of(comparison)) is None:
        return None
    arithmetic = json.loads(found)
    if arithmetic["method"] == "simulated":
        return SIMULATED
    kernels = arithmetic.get("kernels")
    return shown(kernels, arithmetic.get("effective")) if kernels else None


def _status(trial: str, task: str, compared: Comparison | None, failures: Sequence[FailureRow]) -> str:
    if compared is not None:
        return "measured" if compared.facts.headline.score is not None else "incomplete"
    statuses = {failure.status for failure in failures if failure.trial == trial and failure.task in (task, None)}
    return next((status for status in ("failed", "skipped") if status in statuses), "missing")
