"""The tasks of a suite, and the joint errors of those that ask the same documents."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A task of a suite: its difference and its base's score on the pairs, on the scale of the suite's mean.

    ``sources`` are the data sets that it reads.
    """

    task: str
    difference: float
    base: float
    error: Error
    influences: Influences | None = None
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Joint:
    """The ``covariance`` of all tasks' differences and bases, (T, 2, T, 2), and which pairs are taken as one."""

    covariance: Floats
    unknown: tuple[tuple[str, str], ...]


def joint(members: Sequence[Member]) -> Joint:
    """A task's own error is as it stands.  Two tasks that share documents are correlated as these are; two of which
    that is not known, wholly; two that share none, not at all.
    """
    num, unknown = len(members), []
    found = np.zeros((num, 2, num, 2))
    for place, member in enumerate(members):
        found[place, :, place, :] = _own(member.error)
    units = _Units([member.influences or _NOTHING for member in members])
    for second in range(num):
        for first in range(second):
            pair = members[first], members[second]
            block = units.between(pair, first, second)
            if block is None:
                unknown.append((pair[0].task, pair[1].task))
                block = _wholly(pair[0].error, pair[1].error)
            found[first, :, second, :], found[second, :, first, :] = block, block.T
    return Joint(found, tuple(unknown))


def _own(error: Error) -> Floats:
    return np.array([[error.difference, error.covariance], [error.covariance, error.base]])


def _wholly(first: Error, second: Error) -> Floats:
    """As if the one were the other on another scale."""
    (d1, b1), (d2, b2) = (first.difference, first.base), (second.difference, second.base)
    own = np.sqrt(np.outer([d1, b1], [d2, b2]))
    correlations = [
        each.covariance / math.sqrt(d * b) if d * b > 0 else 0.0 for each, d, b in ((first, d1, b1), (second, d2, b2))
    ]
    own[0, 1] *= sum(correlations) / 2
    own[1, 0] *= sum(correlations) / 2
    return np.asarray(own)


_NOTHING = Influences(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 2)))


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

    def between(self, pair: tuple[Member, Member], first: int, second: int) -> Floats | None:
        """The covariance of two tasks, (2, 2); None where nobody knows.

        Documents of one data set may be the same and yet look otherwise, as two tasks put them.
        """
        if any(member.influences is None for member in pair):
            return None
        if not self._shared[first, second]:
            return None if pair[0].sources & pair[1].sources else np.zeros((2, 2))
        sums = [self._sums(first), self._sums(second)]
        if any(np.isnan(each).any() for each in sums):
            return None
        block = np.array([[float((a * b).sum()) for b in sums[1]] for a in sums[0]])
        shares = [float(self._shared[first, second] / self._shared[place, place]) for place in (first, second)]
        correlation = _correlation(sums[0][0], sums[1][0], math.sqrt(shares[0] * shares[1]))
        block[0, 0] = correlation * math.sqrt(pair[0].error.difference * pair[1].error.difference)
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
