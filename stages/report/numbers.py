"""How a report writes numbers: as many digits as their intervals carry, and a dash for what is missing."""

import math
from collections.abc import Iterable

MISSING = "–"
_MAX_DECIMALS = 4
_DECIMALS_WITHOUT_INTERVAL = 3


def decimals(intervals: Iterable[tuple[float | None, float | None]]) -> int:
    """Decimals that show the half-width of the narrowest interval with two significant digits."""
    widths = [high - low for low, high in intervals if low is not None and high is not None and high > low]
    if not widths:
        return _DECIMALS_WITHOUT_INTERVAL
    return min(max(1 - math.floor(math.log10(min(widths) / 2)), 0), _MAX_DECIMALS)


def number(value: float | None, places: int, *, signed: bool = False) -> str:
    """Rounded to ``places`` decimals, with a true minus and without a minus zero."""
    if value is None:
        return MISSING
    rounded = round(value, places) + 0.0
    sign = "+" if signed and rounded else ""
    return f"{rounded:{sign}.{places}f}".replace("-", "−")


def interval(low: float | None, high: float | None, places: int, *, signed: bool = False) -> str:
    """``[low, high]``; a dash when there is none, and an end without bound is a dash by itself."""
    if low is None and high is None:
        return MISSING
    return f"[{number(low, places, signed=signed)}, {number(high, places, signed=signed)}]"


def percent(value: float | None, places: int) -> str:
    """A ratio as a percentage."""
    return MISSING if value is None else f"{number(100 * value, places)} %"


def percent_interval(low: float | None, high: float | None, places: int) -> str:
    """The ends of a ratio's interval, in per cent."""
    return interval(None if low is None else 100 * low, None if high is None else 100 * high, places)


def p_value(p: float | None) -> str:
    """At least two significant digits; below 0.0001 only that."""
    if p is None:
        return MISSING
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def gib(size: float | None) -> str:
    """A size in GiB with three significant digits."""
    return MISSING if size is None else f"{size:.3g}" if size < 100 else f"{size:.0f}"


def count(value: int | None) -> str:
    """With thousands separated."""
    return MISSING if value is None else f"{value:,}"
