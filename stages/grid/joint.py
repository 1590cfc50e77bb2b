"""The joint errors of tasks that ask the same documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.compare.artifact import Error
from stages.statistics import Floats

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Influences:
    """What a task's documents add to its difference and to its base's score, (N, 2); not a number where nobody knows.

    ``documents`` and the ``clusters`` they belong to are numbers of one set, the same in all tasks.
    """

    documents: Indices
    clusters: Indices
    values: Floats


def joint_covariance(errors: Sequence[Error], influences: Sequence[Influences | None]) -> Floats:
    """Of all tasks' differences and bases, (T, 2, T, 2).

    A task's own is as it stands.  Two tasks that share documents are correlated as these are; two of which that is not
    known, perfectly; two that share none, not at all.
    """
    num = len(errors)
    found = np.zeros((num, 2, num, 2))
    for place, error in enumerate(errors):
        found[place, :, place, :] = _own(error)
    known = [place for place, each in enumerate(influences) if each is not None]
    units = _Units([each for each in influences if each is not None])
    for first in range(num):
        for second in range(first):
            if first in known and second in known:
                block = units.between(errors, known, first, second)
            else:
                block = _perfect(errors[first], errors[second])
            found[first, :, second, :], found[second, :, first, :] = block, block.T
    return found


def _own(error: Error) -> Floats:
    return np.array([[error.difference, error.covariance], [error.covariance, error.base]])


def _perfect(first: Error, second: Error) -> Floats:
    """As if the one were the other on another scale."""
    (d1, b1), (d2, b2) = (first.difference, first.base), (second.difference, second.base)
    own = np.sqrt(np.outer([d1, b1], [d2, b2]))
    correlations = [
        each.covariance / math.sqrt(d * b) if d * b > 0 else 0.0 for each, d, b in ((first, d1, b1), (second, d2, b2))
    ]
    own[0, 1] *= sum(correlations) / 2
    own[1, 0] *= sum(correlations) / 2
    return np.asarray(own)


class _Units:
    """Documents that belong together, in whatever task, and what each task's add up to in them."""

    def __init__(self, tasks: Sequence[Influences]) -> None:
        self._tasks = tasks
        units, num = _units(tasks)
        self._units, self._num = units, num
        self._has = np.zeros((len(tasks), num), dtype=np.float32)
        for place, each in enumerate(units):
            self._has[place, each] = 1
        self._shared = self._has @ self._has.T  # counts, exact

    def between(self, errors: Sequence[Error], known: Sequence[int], first: int, second: int) -> Floats:
        """The covariance of two tasks, (2, 2)."""
        one, other = known.index(first), known.index(second)
        if not self._shared[one, other]:
            return np.zeros((2, 2))
        sums = [self._sums(one), self._sums(other)]
        if any(np.isnan(each).any() for each in sums):
            return _perfect(errors[first], errors[second])
        block = np.array([[float((a * b).sum()) for b in sums[1]] for a in sums[0]])
        shares = [float(self._shared[one, other] / self._shared[place, place]) for place in (one, other)]
        correlation = _correlation(sums[0][0], sums[1][0], math.sqrt(shares[0] * shares[1]))
        block[0, 0] = correlation * math.sqrt(errors[first].difference * errors[second].difference)
        return block

    def _sums(self, place: int) -> list[Floats]:
        values = self._tasks[place].values
        return [np.bincount(self._units[place], column, self._num).astype(float) for column in values.T]


def _correlation(first: Floats, second: Floats, share: float) -> float:
    """With one document more that changed in both tasks as much as any did, as far as they share documents: where
    nothing changed yet, what changes next is taken to change in both.
    """
    most = [float(np.abs(each).max()) or 1.0 for each in (first, second)]
    squares = [float((each**2).sum()) + one**2 for each, one in zip((first, second), most, strict=True)]
    return (float((first * second).sum()) + share * most[0] * most[1]) / math.sqrt(squares[0] * squares[1])


def _units(tasks: Sequence[Influences]) -> tuple[list[Indices], int]:
    """Of each document of each task the number of its unit, and how many there are."""
    documents = np.concatenate([each.documents for each in tasks]) if tasks else np.zeros(0, dtype=np.int64)
    clusters = np.concatenate([each.clusters for each in tasks]) if tasks else documents
    num = int(max(documents.max(initial=-1), clusters.max(initial=-1))) + 1
    found = documents
    if not np.array_equal(documents, clusters):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        links = coo_array((np.ones(len(documents), dtype=np.int8), (documents, clusters)), shape=(num, num))
        num, labels = connected_components(links, directed=False)
        found = labels[documents].astype(np.int64)
    return np.split(found, np.cumsum([len(each.documents) for each in tasks])[:-1]) if tasks else [], int(num)
