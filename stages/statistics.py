"""The statistics of a comparison: Wilson's interval, McNemar's exact test and the bootstrap of means, in NumPy.

Shapes: N documents, C columns (one, or trial and base side by side), R resamples.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float | None, float | None]

NO_INTERVAL: Interval = (None, None)
# One resample costs 100 ns for each distinct row as multinomial counts, and 4 us + 8 ns for each row as indices.
_COUNT_NS, _RESAMPLE_NS, _INDEX_NS = 100, 4000, 8


def generator(seed: int, *labels: str) -> np.random.Generator:
    """A random stream of its own for each label, whatever else is drawn before or after."""
    digest = hashlib.sha256("\0".join(labels).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:16])])


def wilson_interval(num_right: float, n: int, confidence: float) -> Interval:
    """Score interval of a binomial share (Wilson 1927): inside [0, 1], and never of zero width."""
    if n == 0:
        return NO_INTERVAL
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_right / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt((share * (1 - share) + z**2 / (4 * n)) / n)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def mcnemar_p(num_base_only: int, num_trial_only: int) -> float:
    """Two-sided exact p of McNemar's test on the discordant pairs.

    Summed in integers, so that every machine writes the same bytes; 5,000 discordant pairs take 3 ms.
    """
    n, term, tail = num_base_only + num_trial_only, 1, 1
    for i in range(min(num_base_only, num_trial_only)):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def resample_means(values_NC: Floats, num_resamples: int, rng: np.random.Generator) -> Floats:
    """Means (R, C) of ``num_resamples`` bootstrap samples of the rows; a row's columns are drawn together.

    Few distinct rows, as with right and wrong, are drawn as multinomial counts: the same distribution as drawing
    indices, and for 14,000 documents 100 times faster.
    """
    rows_KC, counts_K = np.unique(values_NC, axis=0, return_counts=True)
    n = len(values_NC)
    if len(rows_KC) * _COUNT_NS < _RESAMPLE_NS + n * _INDEX_NS:
        return np.asarray(rng.multinomial(n, counts_K / n, size=num_resamples) @ rows_KC / n)
    means_RC = np.empty((num_resamples, values_NC.shape[1]))
    for mean_C in means_RC:
        counts_N = np.bincount(rng.integers(0, n, size=n, dtype=np.int32), minlength=n)
        mean_C[:] = counts_N @ values_NC / n
    return means_RC


def resample_aggregate(
    aggregate: Callable[[list[Any]], float],
    columns: Sequence[Sequence[Any]],
    num_resamples: int,
    rng: np.random.Generator,
) -> Floats:
    """The bootstrap (R, C) of any aggregation of documents; a sample it is not defined on gives nan."""
    draws = np.empty((num_resamples, len(columns)))
    for draw in draws:
        indices = rng.integers(0, len(columns[0]), size=len(columns[0]))
        for position, column in enumerate(columns):
            try:
                draw[position] = aggregate([column[i] for i in indices])
            except (ValueError, ZeroDivisionError):
                draw[position] = np.nan
    return draws


def percentile_interval(draws_R: Floats, confidence: float) -> Interval:
    """The central ``confidence`` of the draws; an end that is not finite is None."""
    tail = (1 - confidence) / 2
    if np.isnan(draws_R).any():
        return NO_INTERVAL
    # "nearest" never interpolates: between a finite draw and an infinite one there is nothing.
    low, high = np.quantile(draws_R, [tail, 1 - tail], method="nearest")
    return _finite(low), _finite(high)


def ratio_draws(draws_R2: Floats) -> Floats:
    """First column over second; where the second is 0 the ratio has no upper bound."""
    numerator, denominator = draws_R2.T
    ratios_R = np.full(len(draws_R2), np.inf)
    with np.errstate(over="ignore"):
        np.divide(numerator, denominator, out=ratios_R, where=denominator != 0)
    return ratios_R


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
