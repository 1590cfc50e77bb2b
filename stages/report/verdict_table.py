"""The table that a reader sees first: of each trial whether to ship it, why, and how its suites and tasks fared."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.compare.verdict import DEGRADED, EQUIVALENT, IMPROVED, INCONCLUSIVE, LOOKS, MARKS
from stages.grid.shipping import DO_NOT_SHIP, NOT_DECIDED, SHIP
from stages.measured import ONCE
from stages.report.artifact import Row, SuiteMean, TrialVerdict
from stages.report.cells import Cell, Heading
from stages.report.config import SuiteRow, TrialRow
from stages.report.numbers import MISSING, count, decimals, gib, interval, number, percent
from stages.report.serving.relative import Cost

DECISION_MARKS = {SHIP: "✔", DO_NOT_SHIP: "✘", NOT_DECIDED: "?"}
_DECISION_LOOKS = {SHIP: "ship", DO_NOT_SHIP: "refused", NOT_DECIDED: "undecided"}
_COUNTED = (DEGRADED, IMPROVED, EQUIVALENT, INCONCLUSIVE)
MOST_REASONS = 1


def decision_shown(decision: str | None) -> str:
    """With its mark; a dash where nothing was judged."""
    return MISSING if decision is None else f"{DECISION_MARKS[decision]} {decision}"


def num_confirmed_shown(confirmed: int | None, own: int | None) -> str:
    """``2 + 1?``: cells that the grid confirms, and those by their own interval alone."""
    if confirmed is None or own is None:
        return MISSING
    return f"{count(confirmed)} + {count(own - confirmed)}?" if own > confirmed else count(confirmed)


def reasons_shown(verdict: TrialVerdict, most: int = MOST_REASONS) -> str:
    """The first of what speaks against a trial or is missing, and how many more there are."""
    rest = len(verdict.reasons) - most
    return "; ".join([*verdict.reasons[:most], *([f"and {rest} more"] if rest > 0 else [])])


def verdict_table(
    trials: Sequence[TrialRow],
    verdicts: Sequence[TrialVerdict],
    suites: Sequence[SuiteRow],
    suite_means: Sequence[SuiteMean],
    rows: Sequence[Row],
    costs: Mapping[str, Cost],
    flips: Mapping[str, str],
) -> dict[str, Any]:
    """Headings and a line for each trial; ``flips`` are the pages of flipped documents."""
    means = {(mean.trial, mean.suite): mean for mean in suite_means}
    of_trial = {verdict.trial: verdict for verdict in verdicts}
    places = {suite.name: _places([mean for mean in suite_means if mean.suite == suite.name]) for suite in suites}
    sizes = {trial.model: trial.size_gib for trial in trials if trial.is_base}
    models = list(dict.fromkeys(trial.model for trial in trials))
    headings = [
        Heading("format"),
        Heading("ship it?", is_left=True),
        Heading("why", is_left=True),
        *(Heading(suite.name, ("normalized points" if suite.normalized else "points",)) for suite in suites),
        *(Heading(MARKS[verdict], (verdict,)) for verdict in _COUNTED),
        Heading("worst task", is_left=True),
        Heading("GiB", ("of base",)),
        *([Heading("queries per dollar", ("of base",))] if costs else []),
    ]
    lines = []
    for trial in sorted(trials, key=lambda each: _place(each, models, of_trial.get(each.name))):
        verdict = of_trial.get(trial.name)
        own = [row for row in rows if row["trial"] == trial.name]
        cells = [
            Cell(trial.label, trial.model, "name", flips.get(trial.name, "")),
            _decision(trial, verdict, f"{sum(row['status'] == 'measured' for row in own)} of {len(own)} tasks"),
            Cell("" if verdict is None else reasons_shown(verdict), look="why"),
            *(_suite(means.get((trial.name, suite.name)), suite, places[suite.name]) for suite in suites),
            *(_count(verdict, each) for each in _COUNTED),
            _worst(verdict),
            _size(trial, sizes.get(trial.model)),
            *([_cost(trial, costs)] if costs else []),
        ]
        lines.append({"is_base": trial.is_base, "model": trial.model, "cells": cells})
    more = [each for each in verdicts if len(each.reasons) > MOST_REASONS]
    return {
        "headings": headings,
        "rows": lines,
        "reasons": [
            {"trial": each.trial, "decision": decision_shown(each.decision), "lines": each.reasons} for each in more
        ],
    }


def _place(trial: TrialRow, models: Sequence[str], verdict: TrialVerdict | None) -> tuple[int, bool, int]:
    """By model: what may be shipped, what is not decided, what is not to be, and what that was compared with."""
    order = [SHIP, NOT_DECIDED, DO_NOT_SHIP]
    decision = None if verdict is None else verdict.decision
    return models.index(trial.model), trial.is_base, order.index(decision) if decision in order else len(order)


def _decision(trial: TrialRow, verdict: TrialVerdict | None, measured: str) -> Cell:
    if trial.is_base:
        return Cell("base", measured)
    decision = None if verdict is None else verdict.decision
    return Cell(decision_shown(decision), measured, _DECISION_LOOKS.get(str(decision), "absent"))


def _suite(mean: SuiteMean | None, suite: SuiteRow, places: int) -> Cell:
    """What was found of the mean's difference, in points."""
    if mean is None or mean.difference is None:
        base = mean is not None and mean.mean is not None and mean.base_mean is None
        return Cell("base" if base else MISSING, look="" if base else "absent")
    scale = 1.0 if suite.normalized else 100.0
    low, high = (None if end is None else scale * end for end in (mean.difference_low, mean.difference_high))
    mark = MARKS.get(str(mean.verdict), "")
    text = f"{mark} {number(scale * mean.difference, places, signed=True)}".strip()
    return Cell(text, interval(low, high, places, signed=True), LOOKS.get(str(mean.verdict), ""))


def _places(means: Sequence[SuiteMean]) -> int:
    scaled = [(mean, 1.0 if mean.normalized else 100.0) for mean in means]
    known = [(mean.difference_low, mean.difference_high, scale) for mean, scale in scaled]
    return decimals([(scale * low, scale * high) for low, high, scale in known if low is not None and high is not None])


def _count(verdict: TrialVerdict | None, word: str) -> Cell:
    if verdict is None or verdict.is_base:
        return Cell(MISSING, look="absent")
    number_of = getattr(verdict, f"num_{word}")
    confirmed = getattr(verdict, f"num_confirmed_{word}", number_of)
    return Cell(
        num_confirmed_shown(confirmed, number_of), look=LOOKS[word] if confirmed else "open" if number_of else "absent"
    )


def _worst(verdict: TrialVerdict | None) -> Cell:
    if verdict is None or verdict.is_base or verdict.worst_task is None:
        return Cell(MISSING, look="absent")
    return Cell(verdict.worst_task, percent(verdict.worst_recovery, 1))


def _size(trial: TrialRow, base_size: float | None) -> Cell:
    share = trial.size_gib / base_size if trial.size_gib and base_size and not trial.is_base else None
    return Cell(gib(trial.size_gib), "" if share is None else percent(share, 0))


def _cost(trial: TrialRow, costs: Mapping[str, Cost]) -> Cell:
    cost = costs.get(trial.name)
    if cost is None:
        return Cell("base" if trial.is_base else MISSING, look="" if trial.is_base else "absent")
    ratio = cost.saturated or cost.alone
    assert ratio is not None
    ends = ONCE if ratio.low is None else interval(ratio.low, ratio.high, 2)
    return Cell(f"{number(ratio.value, 2)} ×", f"{ends} {'' if cost.saturated else 'one at a time'}".strip())
