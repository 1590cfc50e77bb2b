"""The table that a reader sees first: of each trial whether to ship it, why, and how its suites and tasks fared."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.compare.verdict import DEGRADED, EQUIVALENT, IMPROVED, INCONCLUSIVE, LOOKS, MARKS
from stages.grid.shipping import DO_NOT_SHIP, NOT_DECIDED, SHIP
from stages.measured import ONCE
from stages.report.artifact import Row, SuiteMean, TrialVerdict
from stages.report.cells import Cell, Heading, Line, Table
from stages.report.config import SuiteRow, TrialRow
from stages.report.numbers import MISSING, count, decimals, gib, interval, number, percent
from stages.report.order import counted
from stages.report.serving.relative import Cost

DECISION_MARKS = {SHIP: "✔", DO_NOT_SHIP: "✘", NOT_DECIDED: "?"}
_DECISION_LOOKS = {SHIP: "ship", DO_NOT_SHIP: "refused", NOT_DECIDED: "undecided"}
_COUNTED = (DEGRADED, IMPROVED, EQUIVALENT, INCONCLUSIVE)
MOST_REASONS = 1
MOST_LINES = 20  # that a page shows before somebody asks for the others


def decision_shown(decision: str | None) -> str:
    """With its mark; a dash where nothing was judged."""
    return MISSING if decision is None else f"{DECISION_MARKS[decision]} {decision}"


def num_confirmed_shown(confirmed: int | None, own: int | None) -> str:
    """``2 + 1?``: cells that the grid confirms, and those by their own interval alone."""
    if confirmed is None or own is None:
        return MISSING
    return f"{count(confirmed)} + {count(own - confirmed)}?" if own > confirmed else count(confirmed)


def reasons_shown(verdict: TrialVerdict, most: int = MOST_REASONS) -> str:
    """The first of what was shown of a trial, speaks against it or is missing, and how many more there are."""
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
    """A line for each trial, in the order of ``verdicts``: all of them, with every column and in ``brief``, or the
    ``first`` and the ``rest``.  ``flips`` are the pages of flipped documents.
    """
    means = {(mean.trial, mean.suite): mean for mean in suite_means}
    named = {trial.name: trial for trial in trials}
    places = {suite.name: _places([mean for mean in suite_means if mean.suite == suite.name]) for suite in suites}
    sizes = {trial.model: trial.size_gib for trial in trials if trial.is_base}
    headings = [
        Heading("format"),
        Heading("ship it?", is_left=True),
        Heading("why", is_left=True),
        *(Heading(suite.name, ("mean, points",)) for suite in suites),
        *(Heading(MARKS[verdict], (verdict,)) for verdict in _COUNTED),
        Heading("worst task", is_left=True),
        Heading("GiB", ("of base",)),
        *([Heading("queries per dollar", ("of base",))] if costs else []),
    ]
    lines = []
    for verdict in verdicts:
        trial = named[verdict.trial]
        own = [row for row in rows if row["trial"] == trial.name]
        cells = [
            Cell(trial.label, trial.model, "name", flips.get(trial.name, "")),
            _decision(verdict, own),
            Cell(reasons_shown(verdict), look="why"),
            *(_suite(means.get((trial.name, suite.name)), suite, places[suite.name]) for suite in suites),
            *(_count(verdict, each) for each in _COUNTED),
            _worst(verdict),
            _size(trial, sizes.get(trial.model)),
            *([_cost(trial, costs)] if costs else []),
        ]
        lines.append(Line(cells, "base" if trial.is_base else ""))
    return {
        "table": (table := Table(headings, lines, num_keys=2)),
        "brief": _brief(table, len(suites)),
        "first": Table(headings, lines[:MOST_LINES], num_keys=2),
        "rest": Table(headings, lines[MOST_LINES:], num_keys=2),
        "counted": counted(verdicts[MOST_LINES:]),
        "reasons": [
            {"trial": each.trial, "decision": ", ".join(_decided(each)), "lines": each.reasons}
            for each in verdicts
            if each.reasons
        ],
    }


def _brief(whole: Table, num_suites: int) -> Table:
    """What a narrow page has room for: no suites, the counts in one column, and last the reasons."""
    counts = slice(3 + num_suites, 3 + num_suites + len(_COUNTED))
    marks = Heading(" / ".join(each.text for each in whole.headings[counts]), (", ".join(_COUNTED),))
    rows = []
    for cells, _ in whole.rows:
        numbers = Cell(" / ".join(each.text for each in cells[counts]))
        rows.append(Line([*cells[:2], numbers, cells[counts.stop], cells[2]]))
    return Table([*whole.headings[:2], marks, whole.headings[counts.stop], whole.headings[2]], rows)


def _decided(verdict: TrialVerdict) -> list[str]:
    return [decision_shown(verdict.decision), *([verdict.leaning] if verdict.leaning else [])]


def _decision(verdict: TrialVerdict, rows: Sequence[Row]) -> Cell:
    """With its leaning, and how many of its tasks were measured, if these are not all."""
    num_measured = sum(row["status"] == "measured" for row in rows)
    measured = "" if num_measured == len(rows) else f"{num_measured} of {len(rows)} tasks"
    if verdict.is_base:
        return Cell("base", measured)
    note = "\n".join(filter(None, [_in_two_lines(verdict.leaning or ""), measured]))
    return Cell(decision_shown(verdict.decision), note, _DECISION_LOOKS.get(str(verdict.decision), "absent"))


def _in_two_lines(text: str) -> str:
    """Where it is too long for one of a narrow column."""
    words = text.split()
    return text if len(words) < 4 else f"{' '.join(words[: len(words) // 2])}\n{' '.join(words[len(words) // 2 :])}"


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


def _count(verdict: TrialVerdict, word: str) -> Cell:
    if verdict.is_base:
        return Cell(MISSING, look="absent")
    number_of = getattr(verdict, f"num_{word}")
    confirmed = getattr(verdict, f"num_confirmed_{word}", number_of)
    return Cell(
        num_confirmed_shown(confirmed, number_of), look=LOOKS[word] if confirmed else "open" if number_of else "absent"
    )


def _worst(verdict: TrialVerdict) -> Cell:
    if verdict.is_base or verdict.worst_task is None:
        return Cell(MISSING, look="absent")
    return Cell(verdict.worst_task, f"{number(verdict.worst_points, 2, signed=True)} {verdict.worst_unit}".strip())


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
