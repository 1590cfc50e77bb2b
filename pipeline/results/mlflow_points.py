"""Differences from the base as a report's reasons say them: in points, so that tasks compare, positive where better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.artifact import SuiteMean, points_of

_PLAIN = (100.0, "")
_ENDS = ("difference", "difference_low", "difference_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """A difference, its interval, the margin of its verdict and the ``limit``, the most that may be lost of what is
    shipped; ``scale`` is empty where they are points of the plain score.
    """

    difference: float | None
    low: float | None
    high: float | None
    margin: float | None
    limit: float | None
    scale: str


def points_of_row(row: Mapping[str, Any]) -> Points:
    """Of a trial's task: points of the scale from guessing to perfect where it has a baseline, per cent of the base's
    score where lower is better.
    """
    unit = _unit(row)
    prefix = "normalized_" if row.get("is_verdict_normalized") else ""
    ends = [row.get(f"{prefix}{name}") for name in _ENDS]
    if unit[0] < 0:
        ends = [ends[0], ends[2], ends[1]]
    return _points(ends, [row.get("margin"), row.get("wide_margin")], unit)


def points_of_mean(mean: SuiteMean) -> Points:
    """Of a suite's mean, whose margin is its limit."""
    ends = [mean.difference, mean.difference_low, mean.difference_high]
    return _points(ends, [mean.margin, mean.margin], (1.0, "normalized") if mean.normalized else _PLAIN)


def _unit(row: Mapping[str, Any]) -> tuple[float, str]:
    """What a difference that the verdict is of is multiplied with, and what it then is of."""
    unit = points_of(dict(row))
    if row.get("higher_is_better") is False:
        return -unit.scale, unit.name or "own unit"
    return unit.scale, "" if unit.scale == _PLAIN[0] else "normalized"


def _points(ends: list[float | None], limits: list[float | None], unit: tuple[float, str]) -> Points:
    scale, name = unit
    difference, low, high = (None if value is None else scale * value for value in ends)
    margin, limit = (None if value is None else abs(scale) * value for value in limits)
    return Points(difference=difference, low=low, high=high, margin=margin, limit=limit, scale=name)
