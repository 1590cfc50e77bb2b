"""Inference on paired scores: numbers in, intervals, p-values and sample sizes out; no seed changes any of them.

``lost`` documents are right in the base alone, ``won`` in the trial alone; all functions of them take arrays as well.
"""

import math
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.statistics import NO_INTERVAL, Floats, Interval

POWER = 0.9
SEEN = 0.8  # of losses that are just large enough to be seen, so many are
_STEPS = 14  # of the search for an interval's end
_NUM_SUBSETS = 4095
_MOST_ENUMERATED = 12  # documents whose 4,095 subsets are all taken
_SMALL, _LARGE = 1e-12, 1e12


@cache
def critical_value(confidence: float, freedom: float | None = None) -> float:
    """The half-width in standard errors: Student's with ``freedom`` degrees, the normal's without."""
    if freedom is None:
        return NormalDist().inv_cdf(0.5 + confidence / 2)
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def two_sided_p(statistic: float, freedom: float | None = None) -> float:
    """Of a statistic that is Student's or, without ``freedom``, normal."""
    if freedom is None:
        return math.erfc(abs(statistic) / math.sqrt(2))
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(statistic)))


def upper_p(statistic: float, freedom: float | None = None) -> float:
    """One-sided: how often a statistic that is Student's or, without ``freedom``, normal is as large."""
    p = two_sided_p(statistic, freedom) / 2
    return p if statistic >= 0 else 1 - p


def tango_statistic(lost: Any, won: Any, n: Any, difference: Any) -> Floats:
    """Tango's score statistic (Statistics in Medicine 17, 1998) of the hypothesis that the true difference is
    ``difference``; at 0 it is McNemar's (won - lost) / sqrt(won + lost).
    """
    lost, won, n, difference = (np.asarray(each, dtype=float) for each in (lost, won, n, difference))
    gap = won - lost - n * difference
    error = _tango_error(lost, won, n, difference)
    found = gap / np.where(error > 0, error, 1 / _LARGE)
    return np.where(np.abs(gap) <= _SMALL * n, 0.0, found)


def _tango_error(lost: Floats, won: Floats, n: Floats, difference: Floats) -> Floats:
    """Of won - lost, where ``difference`` is true and as many were lost as is likeliest then."""
    product = difference * (1 - difference)
    b = (2 * n - won + lost) * difference - lost - won
    root = np.sqrt(b * b + 8 * n * lost * product)
    return np.asarray(np.sqrt(np.maximum((root - b) / 2 + n * product, 0)))


def tango_interval(lost: Any, won: Any, n: Any, critical: Any) -> tuple[Floats, Floats]:
    """All differences that the statistic does not reject: never of zero width.  Found by the Illinois rule."""
    lost, won, n, critical = np.broadcast_arrays(*(np.asarray(each, dtype=float) for each in (lost, won, n, critical)))
    sign = np.array([-1.0, 1.0]).reshape(2, *[1] * lost.ndim)

    def excess(difference: Floats) -> Floats:
        return np.asarray(sign * (n * difference - won + lost) - critical * _tango_error(lost, won, n, difference))

    found = np.broadcast_to((won - lost) / n, (2, *lost.shape))
    # Where nothing flipped, the found difference has no error itself: half of the way that is certain then is inside.
    near = np.clip(found + sign * critical**2 / (n + critical**2) / 2, -1, 1)
    is_in = excess(near) <= 0
    inside, outside = np.where(is_in, near, found), np.where(is_in, sign, near)
    below, above = excess(inside), excess(outside)
    for _ in range(_STEPS):
        span = above - below
        middle = inside - below * (outside - inside) / np.where(span > 0, span, 1)
        value = excess(middle)
        was_in, is_in = is_in, value <= 0
        below = np.where(is_in, value, np.where(was_in, below, below / 2))
        above = np.where(is_in, np.where(was_in, above / 2, above), value)
        inside, outside = np.where(is_in, middle, inside), np.where(is_in, outside, middle)
    return middle[0], middle[1]


def mcnemar_mid_p(lost: int, won: int, exact: float) -> float:
    """The exact two-sided p less half of what the outcome itself weighs (Fagerland, Lydersen, Laake 2013)."""
    if lost == won:
        return 1 - math.exp(_log_binomial_half(lost + won, lost)) / 2 if lost else 1.0
    return exact - math.exp(_log_binomial_half(lost + won, lost))


def _log_binomial_half(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)


def subset_means(values: Floats) -> Floats:
    """Sorted means of subsets of ``values``: all of them where they are few, else the same 4,095 for every n.

    Of values that are symmetric about their mean each gap between neighbours holds it with equal chance (Hartigan
    1969), which is the test by flipping signs, inverted.
    """
    n = len(values)
    if n <= _MOST_ENUMERATED:
        chosen = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1 == 1
    else:
        chosen = np.random.default_rng(n).random((_NUM_SUBSETS, n)) < 0.5
        chosen[~chosen.any(axis=1)] = True
    return np.sort(np.einsum("sn,n->s", chosen.astype(float), values) / chosen.sum(axis=1))


def subset_interval(values: Floats, confidence: float) -> tuple[Interval, float]:
    """The interval of the mean by ``subset_means``, and the p that it is 0; no interval of so few values that all
    their subsets do not reach the confidence.
    """
    means = subset_means(values)
    tail = math.floor((1 - confidence) / 2 * (len(means) + 1) + _SMALL)
    p = 2 * min(1 + (means <= 0).sum(), 1 + (means >= 0).sum()) / (len(means) + 1)
    interval = NO_INTERVAL if tail < 1 else (float(means[tail - 1]), float(means[-tail]))
    return interval, min(1.0, float(p))


def few_p(values: Floats) -> float:
    """One-sided, by ``subset_means``: that the mean is 0 or less."""
    means = subset_means(values)
    return float((1 + (means <= 0).sum()) / (len(means) + 1))


def ratio_interval(
    base: float, difference: float, ends: tuple[float, float], covariance: float, base_variance: float, critical: float
) -> Interval:
    """Fieller's interval of (base + difference) / base, from the ``ends`` of the difference's own.

    ``covariance`` is of difference and base.  None where the base may be 0.
    """
    if base <= 0 or base * base <= critical**2 * base_variance:
        return NO_INTERVAL
    a = base * base - critical**2 * base_variance
    b = difference * base - critical**2 * covariance
    low, high = (
        (b + sign * math.sqrt(max(b * b - a * (difference**2 - (end - difference) ** 2), 0))) / a
        for sign, end in ((-1, ends[0]), (1, ends[1]))
    )
    return 1 + low, 1 + high


def documents_needed(difference: float, variance: float, margin: float, confidence: float) -> int:
    """So many would decide, nine times of ten, if the difference is what was found: ``variance`` is of one document.

    Whether to call it equivalent, which without any change needs margin * n > z ** 2 alone, or different from 0.
    """
    z = critical_value(confidence)
    normal = NormalDist()
    equivalent, other = z + normal.inv_cdf(0.5 + POWER / 2), z + normal.inv_cdf(POWER)
    room = margin - abs(difference)
    needed = [variance * (equivalent / room) ** 2] if room > 0 else []
    needed += [variance * (other / difference) ** 2] if difference else []
    fewest = fewest_documents(margin, confidence)
    return max(math.ceil(min(needed, default=fewest) - 1e-9), fewest)


def fewest_documents(margin: float, confidence: float) -> int:
    """So many that Tango's interval is within ``margin`` where nothing flips at all."""
    return math.floor(critical_value(confidence) ** 2 * (1 / margin - 1)) + 1 if margin < 1 else 2


def detectable_difference(error: float, confidence: float, freedom: float | None = None) -> float:
    """The smallest true difference whose interval leaves 0 out four times of five, by its standard error."""
    return (critical_value(confidence, freedom) + NormalDist().inv_cdf(SEEN)) * error


def power_not_worse(margin: float, error: float, confidence: float) -> float:
    """The chance that without any difference the interval's worse end is within ``margin``."""
    return NormalDist().cdf(margin / error - critical_value(confidence))


def smoothed_variances(ones: NDArray[Any], minus_ones: NDArray[Any], n: NDArray[Any]) -> Floats:
    """Of strata of values 1, -1 and 0, each with one document more that is as all together are: never 0."""
    total = n.sum() + 1
    plus, minus = (ones.sum() + 0.5) / total, (minus_ones.sum() + 0.5) / total
    sizes = n + 1
    mean = (ones - minus_ones + plus - minus) / sizes
    return np.asarray((ones + minus_ones + plus + minus) / sizes - mean**2)
