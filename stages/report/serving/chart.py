"""Pictures of what serving costs, as the geometry of standalone SVG files, in pixels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.measured import ONCE, Measured
from stages.report.serving.options import Curve

WIDTH, _LABEL_WIDTH, _TEXT_WIDTH = 860, 190, 190
_BAR, _GAP, _TOP = 16, 12, 44
_PLOT = {"left": 56, "right": 690, "top": 44, "bottom": 330}

Bar = tuple[str, float, str, bool]  # recipe, value, what is written beside it, whether it counts


def bar_chart(title: str, recipes: Sequence[str], groups: Mapping[str, Sequence[Bar]]) -> dict[str, Any]:
    """Bars of each workload, relative to its longest; a point that does not count is hollow."""
    rows, y = [], float(_TOP)
    for workload, bars in groups.items():
        longest = max((value for _, value, _, _ in bars), default=1.0)
        drawn = [_bar(bar, recipes, y + _BAR * index, longest) for index, bar in enumerate(bars)]
        rows.append({"label": workload, "y": y + 12, "bars": drawn})
        y += _BAR * len(bars) + _GAP
    return {"kind": "bars", "title": title, "width": WIDTH, "height": y + 8, "rows": rows, "legend": _legend(recipes)}


def curve_chart(title: str, recipes: Sequence[str], curves: Mapping[str, Curve]) -> dict[str, Any] | None:
    """Inter-token latency against request rate, a line for each format with its intervals; None without two points."""
    lines = {recipe: [(rate, ms.measured) for rate, ms in curve.points] for recipe, curve in curves.items()}
    points = [point for line in lines.values() for point in line]
    if len(points) < 2:
        return None
    most_rate = max(rate for rate, _ in points) * 1.05
    most_ms = max(ms.high or ms.value for _, ms in points) * 1.05
    x_ticks, y_ticks = _ticks(most_rate), _ticks(most_ms)
    return {
        "kind": "curves",
        "title": title,
        "width": WIDTH,
        "height": _PLOT["bottom"] + 46,
        **_PLOT,
        "x_ticks": [{"at": _x(tick, most_rate), "label": f"{tick:g}"} for tick in x_ticks],
        "y_ticks": [{"at": _y(tick, most_ms), "label": f"{tick:g}"} for tick in y_ticks],
        "lines": [
            {
                "colour": recipes.index(recipe) % 6,
                "path": " ".join(f"{_x(rate, most_rate)},{_y(ms.value, most_ms)}" for rate, ms in line),
                "dots": [
                    {
                        "x": _x(rate, most_rate),
                        "y": _y(ms.value, most_ms),
                        "low": _y(ms.low or ms.value, most_ms),
                        "high": _y(ms.high or ms.value, most_ms),
                        "title": f"{recipe}: {rate:.3g} requests/s, {_milliseconds(ms)}",
                    }
                    for rate, ms in line
                ],
            }
            for recipe, line in lines.items()
        ],
        "legend": _legend([recipe for recipe in recipes if recipe in curves], recipes),
    }


def _bar(bar: Bar, recipes: Sequence[str], y: float, longest: float) -> dict[str, Any]:
    recipe, value, text, counts = bar
    width = round((WIDTH - _LABEL_WIDTH - _TEXT_WIDTH) * value / longest, 1)
    return {
        "x": _LABEL_WIDTH,
        "y": y,
        "width": width,
        "text_x": _LABEL_WIDTH + width + 6,
        "text_y": y + 11,
        "colour": recipes.index(recipe) % 6,
        "is_hollow": not counts,
        "text": text,
        "title": f"{recipe}: {text}",
    }


def _milliseconds(ms: Measured) -> str:
    ends = ONCE if ms.low is None or ms.high is None else f"[{ms.low:.3g}, {ms.high:.3g}]"
    return f"{ms.value:.3g} ms {ends}"


def _legend(shown: Sequence[str], recipes: Sequence[str] | None = None) -> list[dict[str, Any]]:
    everything = list(recipes or shown)
    step = (WIDTH - 20) / max(len(shown), 4)
    return [
        {"x": round(index * step, 1), "label": recipe, "colour": everything.index(recipe) % 6}
        for index, recipe in enumerate(shown)
    ]


def _ticks(most: float) -> list[float]:
    """At most six round numbers from 0."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(step * index, 10) for index in range(int(most / step) + 1)]


def _x(value: float, most: float) -> float:
    return round(_PLOT["left"] + (_PLOT["right"] - _PLOT["left"]) * value / most, 1)


def _y(value: float, most: float) -> float:
    return round(_PLOT["bottom"] - (_PLOT["bottom"] - _PLOT["top"]) * value / most, 1)
