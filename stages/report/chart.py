"""A model's recovery per task and recipe as dots with whiskers: the geometry of an inline SVG, in pixels."""

from collections.abc import Sequence
from typing import Any

from stages.report.artifact import Row
from stages.report.numbers import percent, percent_interval

LABEL_WIDTH, PLOT_WIDTH, RIGHT_MARGIN = 190, 560, 30
_LINE_HEIGHT, _GROUP_GAP, _TOP = 16, 14, 12
_MAX_SPAN = (
    1.0  # of recovery on either side of 100 %: a wider whisker is cut at the edge, so that the rest stays legible
)
_STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)


def recovery_chart(tasks: Sequence[str], recipes: Sequence[str], rows: Sequence[Row]) -> dict[str, Any] | None:
    """Ticks, and for each task its dots; None if no row has a recovery."""
    measured = [row for row in rows if row["recovery"] is not None]
    if not measured:
        return None
    span = min(max(abs(end - 1) for row in measured for end in _ends(row)), _MAX_SPAN) * 1.05 or 0.01
    step = next((step for step in _STEPS if span / step <= 4.5), _STEPS[-1])
    ticks = [1 + step * index for index in range(-int(span / step), int(span / step) + 1)]
    groups, y = [], float(_TOP)
    for task in tasks:
        of_task = [row for row in measured if row["task"] == task]
        if of_task:
            groups.append(
                {"task": task, "y": y, "dots": [_dot(row, recipes, y, i, span) for i, row in enumerate(of_task)]}
            )
            y += _LINE_HEIGHT * len(of_task) + _GROUP_GAP
    return {
        "width": LABEL_WIDTH + PLOT_WIDTH + RIGHT_MARGIN,
        "height": y + 22,
        "bottom": y,
        "left": LABEL_WIDTH,
        "right": LABEL_WIDTH + PLOT_WIDTH,
        "groups": groups,
        "ticks": [{"x": _x(tick, span), "label": percent(tick, 1 if step < 0.01 else 0)} for tick in ticks],
        "centre": _x(1, span),
        "recipes": [recipe for recipe in recipes if any(row["recipe"] == recipe for row in measured)],
        "colours": {recipe: index % 6 for index, recipe in enumerate(recipes)},
    }


def _ends(row: Row) -> list[float]:
    return [end for end in (row["recovery_low"], row["recovery"], row["recovery_high"]) if end is not None]


def _dot(row: Row, recipes: Sequence[str], y: float, index: int, span: float) -> dict[str, Any]:
    low, high = (row[f"recovery_{end}"] for end in ("low", "high"))
    return {
        "y": y + _LINE_HEIGHT * index + _LINE_HEIGHT / 2,
        "x": _x(row["recovery"], span),
        "low": _x(row["recovery"] if low is None else low, span),
        "high": _x(1 + span if high is None else high, span),
        "colour": recipes.index(row["recipe"]) % 6,
        "is_outside": abs(row["recovery"] - 1) > span,
        "title": f"{row['task']}, {row['recipe']}: {percent(row['recovery'], 1)} {percent_interval(low, high, 1)}",
    }


def _x(recovery: float, span: float) -> float:
    clipped = min(max(recovery, 1 - span), 1 + span)
    return round(LABEL_WIDTH + PLOT_WIDTH * (clipped - 1 + span) / (2 * span), 1)
