"""From the documents of leaves to one estimate with its error: leaves are fixed strata, and where documents belong
together (the same question in several leaves, a story with several questions) the cluster is the unit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.inference import smoothed_variances
from stages.statistics import Floats

FEW_DOCUMENTS = 200  # below, the means of subsets stand in for Student's distribution
_NOTHING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Part:
    """The documents of one leaf: ``scores`` of its columns, and ``values`` (N, C) whose means they are.

    Columns are the difference and the base, or one side's score.  ``is_right_or_wrong``: every side is 0 or 1.
    """

    n: int
    scores: tuple[float, ...]
    values: Floats
    clusters: NDArray[np.int64]
    num_changed: int = 0
    is_right_or_wrong: bool = False
    is_pass: bool = False

    @cached_property
    def scatter(self) -> Floats:
        """Sums of squares and products (C, C) about the means."""
        centred = self.values - self.values.mean(axis=0)
        return np.asarray(np.einsum("ni,nj->ij", centred, centred))

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Of the first column how many are below 0, and above."""
        return int(np.count_nonzero(self.values[:, 0] < 0)), int(np.count_nonzero(self.values[:, 0] > 0))

    @cached_property
    def base(self) -> "Part":
        """Without the difference."""
        return replace(self, values=self.values[:, 1:], scores=self.scores[1:])


class _Clusters(NamedTuple):
    """Of each document, in the order of the parts, the number of its cluster, and how many there are."""

    members: NDArray[np.int64]
    num: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A score or a difference, what its error is made of, and the ``covariance`` of all columns of its parts."""

    value: float
    n: int
    covariance: Floats | None
    freedom: float | None  # of Student's distribution; None: the normal's
    num_clusters: int | None = None  # None where each document stands for itself
    design_effect: float | None = None
    num_changed: int = 0
    counts: tuple[int, int] | None = None  # below 0 and above, of what is right or wrong
    stretch: float = 1.0
    is_pass: bool = False  # of the chance that one of several answers to a document is right
    few: Floats | None = None  # the values themselves, of few graded documents
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def on(self, origin: float, unit: float) -> "Estimate":
        """The same on a scale that starts at ``origin``, in steps of 1 / ``unit``; a difference has no origin."""
        return replace(
            self,
            value=(self.value - origin) * unit,
            covariance=None if self.covariance is None else self.covariance * unit**2,
            stretch=self.stretch * unit,
            few=None if self.few is None else (self.few - origin) * unit,
            bounds=((self.bounds[0] - origin) * unit, (self.bounds[1] - origin) * unit),
        )

    @property
    def method(self) -> str:
        """A word for how the interval is made."""
        if self.counts is not None:
            return "score" if self.num_clusters is None else "score, clusters"
        return "subsets" if self.few is not None else "student" if self.num_clusters is None else "student, clusters"


def estimate(
    parts: Sequence[Part],
    weights: Sequence[float],
    scales: Sequence[float],
    value: float,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Of the sum of the parts' means, each times its weight (they add up to 1) and scale; ``value`` is that sum."""
    shares, sizes = _shares(weights, scales), [len(part.values) for part in parts]
    of_documents = [share / size for share, size in zip(shares, sizes, strict=True)]
    clusters = _clusters_of(parts)
    spread = None if clusters is None else _between_clusters(parts, of_documents, clusters)
    covariance, freedom = _within_strata(parts, shares, sizes) if spread is None else spread
    is_right_or_wrong = all(part.is_right_or_wrong for part in parts)
    is_one_sample = max(of_documents) - min(of_documents) <= _NOTHING * of_documents[0]  # every document counts alike
    stretch, effect = 1.0, None
    if is_right_or_wrong:
        stretch = shares[0] / (sizes[0] / sum(sizes)) if is_one_sample else _stretch_of_strata(parts, shares, sizes)
    if clusters is not None:
        effect = _design_effect(parts, of_documents, clusters)
        stretch *= math.sqrt(effect) if effect is not None else 1.0
    is_pass = any(part.is_pass for part in parts)
    is_few = len(parts) == 1 and clusters is None and not is_pass and sizes[0] < FEW_DOCUMENTS
    return Estimate(
        value=value,
        n=sum(part.n for part in parts),
        covariance=covariance,
        freedom=None if is_right_or_wrong and clusters is None and is_one_sample else freedom,
        num_clusters=None if clusters is None else clusters.num,
        design_effect=effect,
        num_changed=sum(part.num_changed for part in parts),
        counts=_counts(parts) if is_right_or_wrong else None,
        stretch=stretch,
        is_pass=is_pass,
        bounds=bounds,
        few=_around(value, parts[0].values[:, 0] * shares[0]) if is_few and not is_right_or_wrong else None,
    )


def influences(parts: Sequence[Part], weights: Sequence[float], scales: Sequence[float]) -> Floats:
    """What each row of the parts' values adds to the estimate: their squares and products, summed within clusters, add
    up to its ``covariance``, but for leaves of a single document.
    """
    shares, sizes = _shares(weights, scales), [len(part.values) for part in parts]
    if (clusters := _clusters_of(parts)) is not None:
        of_documents = [share / size for share, size in zip(shares, sizes, strict=True)]
        return _about_the_mean_of_all(parts, of_documents) * math.sqrt(clusters.num / max(1, clusters.num - 1))
    within = [
        share / size * math.sqrt(size / max(1, size - 1)) * (part.values - part.values.mean(axis=0))
        for part, share, size in zip(parts, shares, sizes, strict=True)
    ]
    return np.concatenate(within)


def _shares(weights: Sequence[float], scales: Sequence[float]) -> list[float]:
    return [weight * scale for weight, scale in zip(weights, scales, strict=True)]


def _counts(parts: Sequence[Part]) -> tuple[int, int]:
    return sum(part.counts[0] for part in parts), sum(part.counts[1] for part in parts)


def _clusters_of(parts: Sequence[Part]) -> _Clusters | None:
    """None where each document stands for itself; numbers that rise need no search for equal ones."""
    numbers = parts[0].clusters if len(parts) == 1 else np.concatenate([part.clusters for part in parts])
    if (numbers[1:] > numbers[:-1]).all():
        return None
    names, members = np.unique(numbers, return_inverse=True)
    return _Clusters(members, len(names)) if len(names) < len(numbers) else None


def _within_strata(parts: Sequence[Part], shares: list[float], sizes: list[int]) -> tuple[Floats | None, float]:
    """Sums of share² · s² / n, with s² over n - 1, and Satterthwaite's degrees of freedom; a single document and its
    neighbour's have one s².
    """
    if sum(sizes) < 2:
        return None, 0
    total, squares = np.zeros((parts[0].values.shape[1],) * 2), 0.0
    for place, part in enumerate(parts):
        first = last = place
        while sum(sizes[first : last + 1]) < 2:
            first, last = (first, last + 1) if last + 1 < len(parts) else (first - 1, last)
        of = part if first == last else _pooled(parts[first : last + 1])
        freedom = len(of.values) - 1
        variance = shares[place] ** 2 * of.scatter / freedom / sizes[place]
        total += variance
        squares += float(variance[0, 0]) ** 2 / freedom
    return total, float(total[0, 0]) ** 2 / squares if squares else float(max(1, sum(sizes) - len(sizes)))


def _around(value: float, values: Floats) -> Floats:
    return np.asarray(values - values.mean() + value)


def _pooled(parts: Sequence[Part]) -> Part:
    values = np.concatenate([part.values for part in parts])
    return Part(n=len(values), scores=(), values=values, clusters=np.arange(len(values)))


def _between_clusters(
    parts: Sequence[Part], shares: Sequence[float], clusters: _Clusters
) -> tuple[Floats, float] | None:
    """K / (K - 1) · sums of squares and products of what each cluster adds, about the mean of all; K - 1 degrees of
    freedom.
    """
    members, num = clusters
    if num < 2:
        return None
    sums = np.column_stack([np.bincount(members, column, num) for column in _about_the_mean_of_all(parts, shares).T])
    return np.asarray(num / (num - 1) * np.einsum("gi,gj->ij", sums, sums)), num - 1


def _about_the_mean_of_all(parts: Sequence[Part], shares: Sequence[float]) -> Floats:
    weights = np.concatenate([np.full(len(part.values), share) for part, share in zip(parts, shares, strict=True)])
    values = np.concatenate([part.values for part in parts])
    return np.asarray(weights[:, None] * (values - np.average(values, axis=0, weights=weights)))


def _design_effect(parts: Sequence[Part], shares: Sequence[float], clusters: _Clusters) -> float | None:
    """How much more the first column varies than if no document belonged to another.

    Where it does not vary at all, as much as if all of a cluster were one document; 1 where what varies cancels out.
    """
    members, num = clusters
    if num < 2:
        return None
    weights = np.concatenate([np.full(len(part.values), share) for part, share in zip(parts, shares, strict=True)])
    values = np.concatenate([part.values[:, 0] for part in parts])
    centred = values - np.average(values, weights=weights)
    if not centred.any():
        centred = np.ones_like(centred)
    apart = (weights * centred) ** 2
    together = np.bincount(members, weights * centred, num) ** 2
    n = len(values)
    found = float(together.sum() * num / (num - 1) / (apart.sum() * n / (n - 1)))
    return found if found > _NOTHING else 1.0


def _stretch_of_strata(parts: Sequence[Part], shares: Sequence[float], sizes: Sequence[int]) -> float:
    """From all documents alike to each leaf by its share: the root of the ratio of variances."""
    below, above = np.array([part.counts for part in parts]).T
    n, weights = np.array(sizes), np.array(shares)
    variances = smoothed_variances(above, below, n) / n
    return math.sqrt(float((weights**2 * variances).sum() / ((n / n.sum()) ** 2 * variances).sum()))
