"""How far each trial of a model is from its base on each task: the geometry of a forest plot as inline SVG, in pixels.

All tasks share one scale, on which right is better: points from guessing (0) to perfect (100), and where lower is
better per cent of the base's score.  A bar behind each task's lines is its margin.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stages.compare.verdict import DEGRADED, IMPROVED, LOOKS
from stages.report.artifact import Row
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
    if row["normalized_difference"] is not None:
        low, high = (row[f"normalized_difference_{end}"] for end in ("low", "high"))
        return Gain(row, label, row["normalized_difference"], low, high, _normalized_margin(row))
    if row["difference"] is None:
        return None
    lower_is_better = row["higher_is_better"] is False
    if lower_is_better and not row["base_score"]:
        return None
    scale = -100 / row["base_score"] if lower_is_better else 100.0
    low, high = (None if row[name] is None else scale * row[name] for name in ("difference_low", "difference_high"))
    low, high = (high, low) if scale < 0 else (low, high)
    return Gain(
        row, label, scale * row["difference"], low, high, None if row["margin"] is None else abs(scale) * row["margin"]
    )


def _normalized_margin(row: Row) -> float | None:
    """A margin of the raw difference is as much wider on this scale as the difference's interval is."""
    if row["margin"] is None or row["is_verdict_normalized"]:
        return float(row["margin"]) if row["margin"] is not None else None
    names = ("difference_low", "difference_high")
    raw, scaled = ([row[f"{prefix}{name}"] for name in names] for prefix in ("", "normalized_"))
    if None in raw or None in scaled or raw[0] == raw[1]:
        return None
    return float(row["margin"] * (scaled[1] - scaled[0]) / (raw[1] - raw[0]))


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
