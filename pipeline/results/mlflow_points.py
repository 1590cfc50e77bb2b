"""Differences from the base as reasons say them: in points, of the scale that a verdict is of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.artifact import SuiteMean

_POINTS, _NORMALIZED = (100.0, ""), (1.0, "normalized")
_OWN = (1.0, "own unit")  # where lower is better


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """A difference, its interval, the margin of its verdict and the ``limit``, the most that may be lost of what is
    shipped; ``scale`` is empty where all are points of 100.
    """

    difference: float | None
    low: float | None
    high: float | None
    margin: float | None
    limit: float | None
    scale: str


def points_of_row(row: Mapping[str, Any]) -> Points:
    """Of a trial's task."""
    is_normalized = bool(row.get("is_verdict_normalized"))
    unit = _OWN if row.get("higher_is_better") is False else _NORMALIZED if is_normalized else _POINTS
    prefix = "normalized_" if is_normalized else ""
    names = [f"{prefix}difference{end}" for end in ("", "_low", "_high")]
    return _points([row.get(name) for name in (*names, "margin", "wide_margin")], unit)


def points_of_mean(mean: SuiteMean) -> Points:
    """Of a suite's mean, whose margin is its limit."""
    values = [mean.difference, mean.difference_low, mean.difference_high, mean.margin, mean.margin]
    return _points(values, _NORMALIZED if mean.normalized else _POINTS)


def _points(values: list[float | None], unit: tuple[float, str]) -> Points:
    scale, name = unit
    difference, low, high, margin, limit = (None if value is None else scale * value for value in values)
    return Points(difference=difference, low=low, high=high, margin=margin, limit=limit, scale=name)
