"""The verdicts of a whole sweep: which cells it confirms, and which trials may be shipped."""

from collections.abc import Iterator, Sequence
from typing import Any

from stages.compare.verdict import DEGRADED, EQUIVALENT, IMPROVED, INCONCLUSIVE
from stages.grid.multiplicity import FALSE_SHARE, benjamini_hochberg
from stages.grid.shipping import DO_NOT_SHIP, Case, decide
from stages.report.artifact import Row, TrialVerdict, points_of
from stages.report.asked import Asked, is_bad, is_open, of_suite, of_task, points_gained
from stages.report.config import FailureRow, SuiteRow, TrialRow
from stages.report.lack import lack_of
from stages.report.numbers import count, number
from stages.report.reasons import leaning, reasons
from stages.report.rows import Comparisons
from stages.report.suites import Found, confidence_of


def confirmed(rows: Sequence[Row], failures: Sequence[FailureRow]) -> list[Row]:
    """The rows with what all cells of the sweep as planned leave standing of each; bases are no cells."""
    cells = [row for row in planned(rows, failures) if not row["is_base"]]
    ps = [_p(row) for row in cells]
    adjusted = benjamini_hochberg([1.0 if p is None else p for p in ps])
    known = {id(row): float(each) for row, p, each in zip(cells, ps, adjusted, strict=True) if p is not None}
    return [row | _standing(row, known.get(id(row))) for row in rows]


def planned(rows: Sequence[Row], failures: Sequence[FailureRow]) -> list[Row]:
    """The rows of cells that have a result, or a step without one."""
    lacking = {(failure.trial, failure.task) for failure in failures}
    return [
        row for row in rows if row["status"] in ("measured", "incomplete") or (row["trial"], row["task"]) in lacking
    ]


def trial_verdicts(
    trials: Sequence[TrialRow],
    suites: Sequence[SuiteRow],
    rows: Sequence[Row],
    means: Sequence[Found],
    comparisons: Comparisons,
    failures: Sequence[FailureRow] = (),
) -> list[TrialVerdict]:
    """Of each trial what is decided and why; of a base what it lacks.

    ``rows`` are ``confirmed`` and ``planned``.
    """
    confidence = confidence_of(list(comparisons.values()))
    own = {trial.name: [row for row in rows if row["trial"] == trial.name] for trial in trials}
    asked = {
        trial.name: list(_asked(trial, suites, own[trial.name], means, comparisons))
        for trial in trials
        if not trial.is_base and own[trial.name]
    }
    cases = [
        Case(requirements=[each.requirement for each in found], is_bad=any(map(is_bad, own[name])))
        for name, found in asked.items()
    ]
    decisions = dict(zip(asked, decide(cases, confidence), strict=True))
    bases = {trial.model: trial.name for trial in trials if trial.is_base}
    verdicts = []
    for trial in trials:
        lack = lack_of(trial, trial.base or bases.get(trial.model), own[trial.name], failures)
        found: dict[str, Any] = _counts(own[trial.name], trial.is_base) | {"reasons": lack.lines}
        if decision := decisions.get(trial.name):
            asked_of = [each for each in asked[trial.name] if not lack.explains(each)]
            lines = reasons(decision, asked_of, own[trial.name], len(asked), confidence)
            found |= {"decision": decision.word}
            found |= {"leaning": leaning(decision, asked_of, bool(lack.tasks), confidence)}
            found |= {"reasons": [*lines, *lack.lines] if decision.word == DO_NOT_SHIP else [*lack.lines, *lines]}
            found |= {"p": decision.p, "adjusted_p": decision.adjusted_p}
        verdicts.append(
            TrialVerdict(trial=trial.name, model=trial.model, recipe=trial.recipe, is_base=trial.is_base, **found)
        )
    return verdicts


def explained(rows: Sequence[Row], suites: Sequence[SuiteRow], confidence: float) -> dict[str, str]:
    """What of a difference is left among all cells of the sweep, and what may be shipped; ``rows`` as planned."""
    cells = [row for row in rows if not row["is_base"]]
    num_confirmed = sum(bool(row["is_confirmed"]) for row in cells)
    gates = [f"{suite.name}: {', '.join(suite.gate_tasks) or 'none'}" for suite in suites]
    return {
        "confirmed": (
            "A cell that is degraded or improved by its own interval is confirmed if Benjamini and Hochberg's "
            f"procedure keeps it among all {count(len(cells))} of the sweep as planned, from the p of the same "
            "statistic; what failed, and what nothing can be said of, counts with p = 1, bases and leaves do not "
            f"count. Expected false among these {count(num_confirmed)}: at most {100 * FALSE_SHARE:g} %, "
            f"{number(FALSE_SHARE * num_confirmed, 1)}. One that is not confirmed may be chance."
        ),
        "shipping": (
            "A trial may be shipped if every suite's mean lost less than its margin, and every task of a gate less "
            f"than its wide margin, each at {50 * (1 - confidence):g} % one-sided and with all that is missing counted "
            "against it (intersection-union test), and still does among all trials of the sweep by Holm's procedure. "
            "It is not to be shipped where a suite or a task of a gate is shown to have lost more, or a loss beyond "
            f"its margin is confirmed anywhere; else it is not decided. The gate is {'; '.join(gates) or 'all tasks'}."
        ),
    }


def _asked(
    trial: TrialRow,
    suites: Sequence[SuiteRow],
    rows: Sequence[Row],
    means: Sequence[Found],
    comparisons: Comparisons,
) -> Iterator[Asked]:
    """Every suite's mean, and every task of a gate; without suites every task is one."""
    by_task, members = {row["task"]: row for row in rows}, {suite.name: suite.tasks for suite in suites}
    for mean, found in means:
        if mean.trial == trial.name:
            tasks = members[mean.suite]
            own = [by_task[task] for task in tasks if task in by_task]
            yield of_suite(mean, found, own, [_size(comparisons, trial, task) for task in tasks])
    gate = [task for suite in suites for task in suite.gate_tasks] if suites else list(by_task)
    for task in dict.fromkeys(gate):
        yield of_task(task, by_task.get(task), _size(comparisons, trial, task))


def _size(comparisons: Comparisons, trial: TrialRow, task: str) -> int | None:
    """All documents that a task has; None where nobody has counted them."""
    comparison = comparisons.get((trial.name, task))
    leaves = [] if comparison is None else list(comparison.facts.leaves.values())
    return sum(leaf.num_docs for leaf in leaves if leaf is not None) or None


def _p(row: Row) -> float | None:
    """None of a cell of which nothing can be said, whatever its p."""
    p: float | None = None if row["verdict"] is None or is_open(row) else row["verdict_p"]
    return p


def _standing(row: Row, adjusted_p: float | None) -> Row:
    is_different = row["verdict"] in (DEGRADED, IMPROVED)
    is_confirmed = adjusted_p is not None and adjusted_p <= FALSE_SHARE
    return {"adjusted_p": adjusted_p, "is_confirmed": is_confirmed if is_different else None}


def _counts(rows: Sequence[Row], is_base: bool) -> dict[str, Any]:
    if is_base:
        return {"num_cells": len(rows)}
    counts: dict[str, Any] = {"num_cells": len(rows)}
    for verdict in (EQUIVALENT, INCONCLUSIVE, DEGRADED, IMPROVED):
        counts[f"num_{verdict}"] = sum(row["verdict"] == verdict for row in rows)
    for verdict in (DEGRADED, IMPROVED):
        counts[f"num_confirmed_{verdict}"] = sum(row["verdict"] == verdict and row["is_confirmed"] for row in rows)
    worst = min((row for row in rows if row["difference"] is not None), key=points_gained, default=None)
    if worst is None:
        return counts
    points = {"worst_points": points_gained(worst), "worst_unit": points_of(worst).name}
    return counts | {"worst_recovery": worst["recovery"], "worst_task": worst["task"]} | points
