"""How far each trial of a model is from its base on each task: the geometry of a forest plot as inline SVG, in pixels.

All tasks share one scale, on which right is better: points from guessing (0) to perfect (100), and where lower is
better per cent of the base's score.  A bar behind each task's lines is its margin.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stages.compare.verdict import DEGRADED, IMPROVED, LOOKS
from stages.report.artifact import Row, points_of
from stages.report.asked import gain_of as of_cell
from stages.report.asked import points_gained
from stages.report.config import TrialRow
from stages.report.numbers import decimals, interval, number

LABEL_WIDTH, PLOT_WIDTH, TEXT_WIDTH = 190, 560, 190
MOST_LINES = 300  # of more only what is degraded or improved is drawn
_LINE_HEIGHT, _TASK_HEIGHT, _TOP = 18, 24, 8
_MOST_POINTS = 30.0  # beyond the margins and what was found intervals are cut, so that the rest stays legible
_STEPS = (0.5, 1, 2, 5, 10, 20, 25, 50)


class Gain(NamedTuple):
    """How much better a trial is than its base on a task, and the margin around no difference."""

    row: Row
    label: str
    value: float
    low: float | None
    high: float | None
    margin: float | None


def forest_chart(tasks: Sequence[str], trials: Sequence[TrialRow], rows: Sequence[Row]) -> dict[str, Any] | None:
    """Ticks, and for each task its margin and a line for each trial; None where nothing is compared."""
    labels = {trial.name: trial.label for trial in trials}
    gains = [gain for row in rows if row["trial"] in labels and (gain := gain_of(row, labels[row["trial"]]))]
    shown = gains if len(gains) <= MOST_LINES else [gain for gain in gains if _is_news(gain)][:MOST_LINES]
    if not shown:
        return None
    span, places = _span(shown), decimals([(gain.low, gain.high) for gain in shown])
    groups, y = [], float(_TOP)
    for task in tasks:
        of_task = [gain for gain in shown if gain.row["task"] == task]
        if of_task:
            groups.append(_group(task, of_task, y, span, places))
            y += _TASK_HEIGHT + _LINE_HEIGHT * len(of_task)
    return {
        "width": LABEL_WIDTH + PLOT_WIDTH + TEXT_WIDTH,
        "height": y + 40,
        "bottom": y + 4,
        "left": LABEL_WIDTH,
        "right": LABEL_WIDTH + PLOT_WIDTH,
        "text_x": LABEL_WIDTH + PLOT_WIDTH + TEXT_WIDTH,
        "groups": groups,
        "ticks": [{"x": _x(tick, span), "label": _tick(tick)} for tick in _ticks(span)],
        "centre": _x(0, span),
        "num_lines": len(shown),
        "num_left_out": len(gains) - len(shown),
    }


def gain_of(row: Row, label: str) -> Gain | None:
    """On the scale of the chart; None where trial and base were not compared."""
    if row["difference"] is None or not (points := points_of(row)).name:
        return None
    low, high = (None if end is None else points.scale * end for end in of_cell(row))
    margin = None if row["margin"] is None else points.scale * row["margin"]
    return Gain(row, label, points_gained(row), low, high, margin)


def _is_news(gain: Gain) -> bool:
    return gain.row["verdict"] in (DEGRADED, IMPROVED)


def _span(gains: Sequence[Gain]) -> float:
    ends = [abs(end) for gain in gains for end in (gain.low, gain.high) if end is not None]
    found = [abs(each) for gain in gains for each in (gain.value, gain.margin) if each is not None]
    return max(min(max(ends, default=0), _MOST_POINTS), *(1.25 * each for each in found), 0.5) * 1.04


def _group(task: str, gains: Sequence[Gain], y: float, span: float, places: int) -> dict[str, Any]:
    top = y + _TASK_HEIGHT
    margins = {gain.margin for gain in gains if gain.margin is not None}
    margin = max(margins, default=None)
    unit = "% of the base's score" if gains[0].row["higher_is_better"] is False else ""
    return {
        "task": task,
        "unit": unit,
        "y": y + 17,
        "band": None
        if margin is None
        else {
            "x": _x(-margin, span),
            "width": round(_x(margin, span) - _x(-margin, span), 1),
            "y": top,
            "height": _LINE_HEIGHT * len(gains),
            "title": f"{task}: margin ±{number(margin, 2)}",
        },
        "lines": [_line(gain, top + _LINE_HEIGHT * (i + 0.5), span, places) for i, gain in enumerate(gains)],
    }


def _line(gain: Gain, y: float, span: float, places: int) -> dict[str, Any]:
    low, high = (gain.value if end is None else end for end in (gain.low, gain.high))
    text = f"{number(gain.value, places, signed=True)} {interval(gain.low, gain.high, places, signed=True)}"
    verdict = gain.row["verdict"]
    unconfirmed = " unconfirmed" if _is_news(gain) and gain.row["is_confirmed"] is False else ""
    return {
        "y": y,
        "label": gain.label,
        "x": _x(gain.value, span),
        "low": _x(low, span),
        "high": _x(high, span),
        "is_cut_low": low < -span,
        "is_cut_high": high > span,
        "is_known": gain.low is not None,
        "shape": verdict or "unjudged",
        "look": f"{LOOKS.get(str(verdict), 'open')}{unconfirmed}",
        "text": text,
        "title": f"{gain.row['task']}, {gain.label}: {text} {verdict or ''}{unconfirmed}".strip(),
    }


def _ticks(span: float) -> Iterator[float]:
    step = next((step for step in _STEPS if span / step <= 5), _STEPS[-1])
    most = int(span / step)
    yield from (step * index for index in range(-most, most + 1))


def _tick(value: float) -> str:
    return number(value, 0 if value == round(value) else 1, signed=True)


def _x(points: float, span: float) -> float:
    clipped = min(max(points, -span), span)
    return round(LABEL_WIDTH + PLOT_WIDTH * (clipped + span) / (2 * span), 1)
