"""What one start of a server says: a fixed cut for warm-up, then quantiles with what so many requests say of them.

How much the next start would differ is in none of these numbers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.measured import CONFIDENCE, Replicated, num_for_quantile
from stages.serving.artifact import Distribution
from stages.statistics import NO_INTERVAL, Interval

WARM_UP_METHOD = "the first fifth, whatever they took"
_WARM_UP_PARTS = 5
_ROUNDING = 1e-9


def num_warm_up(num_values: int) -> int:
    """How many at the start do not count: a fixed share, since a cut that looks at the values chooses among them."""
    return num_values // _WARM_UP_PARTS


def distribution(values: Sequence[float | None]) -> Distribution:
    """Mean, median, p90 and p99 with their intervals, and the relative spread; what so few cannot say is None.

    A quantile needs at least one value expected beyond it: p99 a hundred.
    """
    known = np.sort(np.array([value for value in values if value is not None], dtype=float))
    (p90_low, p90_high), (p99_low, p99_high) = quantile_interval(known, 0.9), quantile_interval(known, 0.99)
    return Distribution(
        n=len(known),
        mean=float(known.mean()) if len(known) else None,
        median=float(np.median(known)) if len(known) else None,
        p90=_quantile(known, 0.9),
        p90_low=p90_low,
        p90_high=p90_high,
        p99=_quantile(known, 0.99),
        p99_low=p99_low,
        p99_high=p99_high,
        spread=spread(known.tolist()),
    )


def quantile_interval(values: Any, quantile: float) -> Interval:
    """Between two of the sorted ``values``, the nearest to each other that hold the quantile of whatever distribution
    often enough, by the binomial number of values below it; none where even the largest may lie below.
    """
    from scipy.special import bdtr

    n = len(values)
    if n < num_for_quantile(quantile):
        return NO_INTERVAL
    below = bdtr(np.arange(n), n, quantile)  # at most so many
    upper = np.searchsorted(below, below + CONFIDENCE)
    (lower,) = np.nonzero(upper < n)
    upper = upper[lower]
    imbalance = np.abs(below[lower] - (1 - below[upper]))
    best = np.lexsort((imbalance, upper - lower))[0]
    return float(values[lower[best]]), float(values[upper[best]])


def _quantile(known: Any, quantile: float) -> float | None:
    if len(known) * (1 - quantile) < 1 - _ROUNDING:
        return None
    return float(np.quantile(known, quantile, method="median_unbiased"))


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over mean; None for fewer than two values."""
    return float(np.std(values, ddof=1) / np.mean(values)) if len(values) > 1 and np.mean(values) else None


def has_drifted(values: Sequence[float], share: float) -> bool:
    """Whether the later half is surely more than ``share`` above or below the earlier one."""
    half = len(values) // 2
    halves = [{i: value for i, value in enumerate(part) if value > 0} for part in (values[:half], values[half:])]
    if min(map(len, halves)) < 2:
        return False
    early, late = Replicated.of("early", halves[0]), Replicated.of("late", halves[1])
    ratio = late.over(early).measured
    return ratio.low is not None and ratio.high is not None and (ratio.low > 1 + share or ratio.high < 1 - share)
