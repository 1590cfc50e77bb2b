"""The tables of a report's models, as text: one for each suite, and every number in detail."""

from collections.abc import Sequence
from typing import Any

from stages.report.artifact import Row, SuiteMean
from stages.report.cells import Cell, Heading, Line, Table
from stages.report.columns import COLUMNS, NORMALIZED_COLUMNS, as_normalized, is_floored, places_of, score_with_recovery
from stages.report.config import SuiteRow, TrialRow
from stages.report.numbers import (
    MISSING,
    count,
    gib,
    number,
    percent,
    percent_interval,
)

MOST_OPEN = 20  # trials of a model whose tables a page shows before somebody asks for them
# Of a suite's mean, which has no interval, raw and normalized (a number of up to 100), and of its recovery in per cent.
_MEAN_DECIMALS, _NORMALIZED_MEAN_DECIMALS, _RECOVERY_DECIMALS = 4, 2, 2
_MEAN_HEADINGS = (Heading("mean"), Heading("recovery", is_bound=True))


def model_sections(
    trials: Sequence[TrialRow],
    tasks: Sequence[str],
    suites: Sequence[SuiteRow],
    rows: Sequence[Row],
    suite_means: Sequence[SuiteMean],
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
                "notes": [
                    *dict.fromkeys(trial.notes for trial in own if trial.notes),
                    *(f"{trial.label}: {trial.quantized}" for trial in own if trial.quantized),
                ],
                "tables": [_table(group, own, of_model, suite_means) for group in groups if group.tasks],
                "details": _details(of_model, tasks),
                "is_large": len(own) > MOST_OPEN,
            }
        )
    return sections


def _table(
    suite: SuiteRow, trials: Sequence[TrialRow], rows: Sequence[Row], suite_means: Sequence[SuiteMean]
) -> dict[str, Any]:
    """A line for each trial: each task's score with its recovery, then the suite's mean."""
    shown = [as_normalized(row) for row in rows] if suite.normalized else rows
    columns = {task: [row for row in shown if row["task"] == task] for task in suite.tasks}
    cells = {
        (row["trial"], row["task"]): score_with_recovery(row, places)
        for column in columns.values()
        for places in [places_of(column)]
        for row in column
    }
    missing = Cell(MISSING, "missing", "absent")
    means = {mean.trial: mean for mean in suite_means if mean.suite == suite.name}
    floored = {row["trial"] for row in rows if suite.normalized and row["task"] in suite.tasks and is_floored(row)}
    of_tasks = [_heading(task, column) for task, column in columns.items()]
    return {
        "title": f"{suite.name}, normalized" if suite.normalized else suite.name,
        "table": Table(
            [Heading("format"), *of_tasks, *(_MEAN_HEADINGS if means else ())],
            [
                Line(
                    [
                        Cell(trial.label, f"{gib(trial.size_gib)} GiB"),
                        *(cells.get((trial.name, task), missing) for task in suite.tasks),
                        *(_mean_cells(means[trial.name], trial, trial.name in floored) if means else ()),
                    ],
                    "base" if trial.is_base else "",
                )
                for trial in trials
            ],
        ),
    }


def _mean_cells(mean: SuiteMean, trial: TrialRow, is_floored: bool) -> tuple[Cell, Cell]:
    """The mean with its difference in points, which is of scores without a floor."""
    found, scale = _suite_cell(mean, trial), 1 if mean.normalized else 100
    gained = "" if mean.difference is None else number(scale * mean.difference, 2, signed=True)
    notes = [gained, "floored" if is_floored else ""]
    note = "\n".join(filter(None, notes))
    return Cell(found["mean"], note, look="score"), Cell(found["recovery"], found["interval"])


def _heading(task: str, rows: Sequence[Row]) -> Heading:
    metrics = sorted({row["metric"] for row in rows if row["metric"]})
    sizes = sorted({row["n"] for row in rows if row["n"] is not None})
    ends = dict.fromkeys([sizes[0], sizes[-1]]) if sizes else {}
    notes = (" / ".join(metrics) or MISSING, f"n = {' to '.join(map(count, ends)) or MISSING}")
    return Heading(task, notes)


def _details(rows: Sequence[Row], tasks: Sequence[str]) -> Table:
    """Every number of a model, task by task: ``COLUMNS``, and ``NORMALIZED_COLUMNS`` where there is one."""
    has_normalized = any(row["normalized"] is not None for row in rows)
    lines = []
    for task in tasks:
        column = [row for row in rows if row["task"] == task]
        scaled = [as_normalized(row) for row in column]
        places, scaled_places = places_of(column), places_of(scaled)
        for row, on_scale in zip(column, scaled, strict=True):
            cells = [each.cell(row, places) for each in COLUMNS]
            if has_normalized:
                cells += [each.cell(on_scale, scaled_places) for each in NORMALIZED_COLUMNS]
            lines.append(Line(cells, "group" if row is column[0] else ""))
    columns = (*COLUMNS, *(NORMALIZED_COLUMNS if has_normalized else ()))
    return Table([Heading(each.name, (), each.is_left, each.is_bound) for each in columns], lines, num_keys=2)


def _suite_cell(mean: SuiteMean, trial: TrialRow) -> dict[str, str]:
    is_known_base = trial.is_base and mean.mean is not None
    ends = mean.recovery_low, mean.recovery_high
    return {
        "suite": mean.suite,
        "mean": number(mean.mean, _NORMALIZED_MEAN_DECIMALS if mean.normalized else _MEAN_DECIMALS),
        "recovery": "base" if is_known_base else percent(mean.recovery, _RECOVERY_DECIMALS),
        "interval": "" if None in ends else percent_interval(*ends, _RECOVERY_DECIMALS),
    }
