"""Where warm-up ends, and what the rest says: truncation, percentiles and intervals of repeated measurements."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.serving.artifact import Distribution
from stages.statistics import Floats, generator

CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
MIN_BOOTSTRAP = 6
MIN_STEADY = 3  # values: of fewer a variance says nothing
WARM_UP_METHOD = "MSER: the start whose removal makes the standard error of the rest smallest, at most half"


def num_warm_up(values: Sequence[float]) -> int:
    """How many values at the start belong to warm-up, by the marginal standard error rule (White 1997).

    Cutting more shrinks the variance as long as what is cut is unlike the rest, and loses degrees of freedom after.
    """
    errors = [np.var(values[cut:]) / (len(values) - cut) for cut in range(max_warm_up(len(values)) + 1)]
    return int(np.argmin(errors)) if errors else 0


def max_warm_up(num_values: int) -> int:
    """The most that is ever cut; where all of it is, the end of warm-up was not seen."""
    return min(num_values // 2, num_values - MIN_STEADY)


def distribution(values: Sequence[float | None], label: str) -> Distribution:
    """Mean, median, its interval, p90 and p99, and the relative spread; what the number of values cannot say is None.

    A quantile needs at least one value expected beyond it: p99 a hundred.
    """
    known = np.array([value for value in values if value is not None], dtype=float)
    low, high = median_interval(known, label)
    return Distribution(
        n=len(known),
        mean=float(known.mean()) if len(known) else None,
        median=float(np.median(known)) if len(known) else None,
        low=low,
        high=high,
        p90=_quantile(known, 0.9),
        p99=_quantile(known, 0.99),
        spread=spread(known.tolist()),
    )


def _quantile(known: Floats, quantile: float) -> float | None:
    return float(np.quantile(known, quantile)) if len(known) * (1 - quantile) >= 1 - 1e-9 else None


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over mean; None for fewer than two values."""
    return float(np.std(values, ddof=1) / np.mean(values)) if len(values) > 1 and np.mean(values) else None


def median_interval(values: Any, label: str) -> tuple[float | None, float | None]:
    """Bootstrap interval of the median; of fewer than six values, which it cannot cover, Student's about it.

    No interval of one value.
    """
    if len(values) < MIN_BOOTSTRAP:
        low, high = mean_interval(values)
        shift = 0.0 if low is None else float(np.median(values) - np.mean(values))
        return (None, None) if low is None or high is None else (max(low + shift, 0.0), high + shift)
    draws = generator(0, label).choice(np.asarray(values, dtype=float), size=(_NUM_RESAMPLES, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(draws, axis=1), [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's interval of the mean of a few repeats; no interval of one."""
    if len(values) < 2:
        return None, None
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    mean = float(np.mean(values))
    return max(mean - half, 0.0), mean + half
