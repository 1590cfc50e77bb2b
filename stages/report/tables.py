"""The tables of a report, as text: an overview, a table for each model and suite, and every number in detail."""

from collections.abc import Iterable, Sequence
from typing import Any

from stages.compare.rows import NORMALIZED
from stages.report.config import SuiteRow, TrialRow
from stages.report.numbers import (
    MISSING,
    count,
    decimals,
    gib,
    interval,
    number,
    p_value,
    percent,
    percent_interval,
)
from stages.report.rows import Row

_MARKS = {"lower": "▼", "higher": "▲", "not distinguishable": "≈"}
# Of a suite's mean, which has no interval, raw and normalized (a number of up to 100), and of its recovery in per cent.
_MEAN_DECIMALS, _NORMALIZED_MEAN_DECIMALS, _RECOVERY_DECIMALS = 4, 2, 2


def overview(trials: Sequence[TrialRow], rows: Sequence[Row], suite_means: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each trial: size, recovery of each suite, and how many tasks are distinguishable from the base."""
    base_sizes = {trial.model: trial.size_gib for trial in trials if trial.is_base}
    lines = []
    for trial in trials:
        own = [row for row in rows if row["trial"] == trial.name]
        base_size = base_sizes.get(trial.model)
        lines.append(
            {
                "model": trial.model,
                "recipe": trial.recipe,
                "is_base": trial.is_base,
                "size": gib(trial.size_gib),
                "share": percent(trial.size_gib / base_size if trial.size_gib and base_size else None, 0),
                "suites": [_suite_cell(mean, trial) for mean in suite_means if mean["trial"] == trial.name],
                "num_worse": _num_verdicts(own, trial, "worse"),
                "num_better": _num_verdicts(own, trial, "better"),
                "measured": f"{sum(row['status'] == 'measured' for row in own)} of {len(own)}",
            }
        )
    return lines


def model_sections(
    trials: Sequence[TrialRow],
    tasks: Sequence[str],
    suites: Sequence[SuiteRow],
    rows: Sequence[Row],
    suite_means: Sequence[Row],
) -> list[dict[str, Any]]:
    """For each model its tables, one for each suite and one for the tasks that are in none."""
    rest = [task for task in tasks if all(task not in suite.tasks for suite in suites)]
    groups = [*suites, SuiteRow(name="Other tasks" if suites else "Tasks", tasks=rest)]
    sections = []
    for model in dict.fromkeys(trial.model for trial in trials):
        own = [trial for trial in trials if trial.model == model]
        of_model = [row for row in rows if row["model"] == model]
        sections.append(
            {
                "model": model,
                "notes": list(dict.fromkeys(trial.notes for trial in own if trial.notes)),
                "tables": [_table(group, own, of_model, suite_means) for group in groups if group.tasks],
                "details": _details(of_model, tasks),
                "has_normalized": any(row["normalized"] is not None for row in of_model),
            }
        )
    return sections


def _table(
    suite: SuiteRow, trials: Sequence[TrialRow], rows: Sequence[Row], suite_means: Sequence[Row]
) -> dict[str, Any]:
    shown = [_as_normalized(row) for row in rows] if suite.normalized else rows
    columns = {task: [row for row in shown if row["task"] == task] for task in suite.tasks}
    cells = {(row["trial"], row["task"]): cell for rows in columns.values() for row, cell in _cells(rows)}
    missing = {"score": MISSING, "interval": "", "recovery": MISSING, "mark": "", "tone": "", "status": "missing"}
    means = {mean["trial"]: mean for mean in suite_means if mean["suite"] == suite.name}
    return {
        "title": f"{suite.name}, normalized" if suite.normalized else suite.name,
        "has_mean": bool(means),
        "columns": [_column(task, column) for task, column in columns.items()],
        "rows": [
            {
                "recipe": trial.recipe,
                "is_base": trial.is_base,
                "size": gib(trial.size_gib),
                "cells": [cells.get((trial.name, task), missing) for task in suite.tasks],
                "mean": _suite_cell(means[trial.name], trial) if means else None,
            }
            for trial in trials
        ],
    }


def _as_normalized(row: Row) -> Row:
    """The row with its normalized numbers in the places of the raw ones."""
    return row | {raw: row[name] for name, raw in NORMALIZED.items()}


def _column(task: str, rows: Sequence[Row]) -> dict[str, str]:
    metrics = sorted({row["metric"] for row in rows if row["metric"]})
    sizes = sorted({row["n"] for row in rows if row["n"] is not None})
    ends = dict.fromkeys([sizes[0], sizes[-1]]) if sizes else {}
    return {"task": task, "metric": " / ".join(metrics) or MISSING, "n": " to ".join(map(count, ends)) or MISSING}


def _cells(rows: Sequence[Row]) -> list[tuple[Row, dict[str, str]]]:
    """The cells of one column, which share their number of decimals."""
    places, of_ratio, _ = _places(rows)
    return [
        (
            row,
            {
                "score": number(row["score"], places),
                "interval": "" if row["score"] is None else interval(row["score_low"], row["score_high"], places),
                "recovery": "base" if _is_known_base(row) else percent(row["recovery"], of_ratio),
                "mark": _MARKS.get(row["verdict"], ""),
                "tone": _tone(row),
                "status": row["status"],
            },
        )
        for row in rows
    ]


def _details(rows: Sequence[Row], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Every number of a model, task by task."""
    lines = []
    for task in tasks:
        column = [row for row in rows if row["task"] == task]
        normalized = [_as_normalized(row) for row in column]
        places, normalized_places = _places(column), _places(normalized)
        for row, scaled in zip(column, normalized, strict=True):
            lines.append(_detail(row, *places) | {"normalized": _score_and_recovery(scaled, *normalized_places)})
    return lines


def _detail(row: Row, places: int, of_ratio: int, of_difference: int) -> dict[str, Any]:
    ends = row["difference_low"], row["difference_high"]
    return {
        "task": row["task"],
        "recipe": row["recipe"],
        "status": row["status"],
        "metric": row["metric"] or MISSING,
        "n": count(row["n"]),
        "num_missing": count(row["num_missing"]),
        "num_truncated": count(row["num_truncated"]),
        **_score_and_recovery(row, places, of_ratio, of_difference),
        "difference": number(row["difference"], of_difference, signed=True),
        "difference_interval": interval(*ends, of_difference, signed=True),
        "lost": count(row["num_base_only_right"]),
        "won": count(row["num_trial_only_right"]),
        "p": p_value(row["mcnemar_p"]),
        "verdict": row["verdict"] or MISSING,
        "tone": _tone(row),
    }


def _score_and_recovery(row: Row, places: int, of_ratio: int, of_difference: int) -> dict[str, str]:
    return {
        "score": number(row["score"], places),
        "interval": interval(row["score_low"], row["score_high"], places),
        "base_score": number(row["base_score"], places),
        "recovery": percent(row["recovery"], of_ratio),
        "recovery_interval": percent_interval(row["recovery_low"], row["recovery_high"], of_ratio),
    }


def _places(rows: Iterable[Row]) -> tuple[int, int, int]:
    """Decimals of the scores, recoveries in per cent and differences of one column."""
    rows = list(rows)

    def ends(name: str, scale: float = 1) -> list[tuple[float | None, float | None]]:
        pairs = [(row[f"{name}_low"], row[f"{name}_high"]) for row in rows]
        return [(scale * low, scale * high) for low, high in pairs if low is not None and high is not None]

    return decimals(ends("score")), decimals(ends("recovery", 100)), decimals(ends("difference"))


def _is_known_base(row: Row) -> bool:
    return bool(row["is_base"]) and row["score"] is not None


def _tone(row: Row) -> str:
    """Whether a distinguishable difference is for the better or the worse."""
    if row["verdict"] not in ("lower", "higher"):
        return "same" if row["verdict"] else ""
    return "better" if (row["verdict"] == "higher") == (row["higher_is_better"] is not False) else "worse"


def _num_verdicts(rows: Sequence[Row], trial: TrialRow, tone: str) -> str:
    if trial.is_base or not any(row["verdict"] for row in rows):
        return MISSING
    return count(sum(_tone(row) == tone for row in rows))


def _suite_cell(mean: Row, trial: TrialRow) -> dict[str, str]:
    is_known_base = trial.is_base and mean["mean"] is not None
    ends = mean["recovery_low"], mean["recovery_high"]
    return {
        "suite": mean["suite"],
        "mean": number(mean["mean"], _NORMALIZED_MEAN_DECIMALS if mean["normalized"] else _MEAN_DECIMALS),
        "recovery": "base" if is_known_base else percent(mean["recovery"], _RECOVERY_DECIMALS),
        "interval": "" if None in ends else percent_interval(*ends, _RECOVERY_DECIMALS),
    }
