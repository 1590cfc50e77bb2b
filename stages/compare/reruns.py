"""The same checkpoint asked twice: how many documents come out otherwise, how far that moves its score, and whether a
trial changes more of its base's than the base does itself.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.compare.evidence import Pairs, Scorer, Values, read_values
from stages.compare.samples import Indices, Leaf, Pairing, check_comparable, pair, read_leaves
from stages.evaluate.differences import check_one_arithmetic

_CHANGED = Scorer(None, is_right_or_wrong=True)  # of documents whether they changed


@dataclass(frozen=True, slots=True)
class Rerun:
    """What was evaluated again, paired with the first run of the same checkpoint."""

    leaves: Mapping[str, Leaf]
    pairings: Mapping[str, Pairing]  # its rows, and those of the first run


def read_reruns(
    side: str, task: str, leaves: Sequence[str], inputs: Mapping[str, Path], first: Mapping[str, Leaf]
) -> list[Rerun]:
    """Those of ``side`` (trial or base), from inputs ``<side>_rerun/<number>/<part>``.

    Raises DataError if they are damaged, or were not evaluated as the first run was.
    """
    numbers = dict.fromkeys(name.split("/")[1] for name in inputs if name.startswith(f"{side}_rerun/"))
    found = []
    for number in numbers:
        again = read_leaves(f"{side}_rerun/{number}", leaves, inputs)
        check_comparable(task, again, first, ("rerun", "first run"))
        shared = [name for name in again if name in first]
        for name in shared:
            found_in = {f"the rerun of {name}": again[name].arithmetic, "its first run": first[name].arithmetic}
            check_one_arithmetic(task, found_in)
        pairings = {name: pair(again[name].documents, first[name].documents) for name in shared}
        found.append(Rerun(again, pairings))
    return found


def changes_between_runs(
    name: str, metric: str, values: Values, reruns: Sequence[Rerun], scorer: Scorer, clusters: Indices
) -> Pairs | None:
    """A leaf's reruns beside its first run, of which ``values`` and ``clusters`` are; None without any."""
    again = list(_again(name, metric, reruns, scorer))
    if not again:
        return None
    known = [found.known[pairing.trial] & values.known[pairing.base] for found, pairing in again]
    columns = [
        np.concatenate(
            [found.values[pairing.trial][both] for (found, pairing), both in zip(again, known, strict=True)]
        ),
        np.concatenate([values.values[pairing.base][both] for (_, pairing), both in zip(again, known, strict=True)]),
    ]
    groups = [clusters[pairing.base][both] for (_, pairing), both in zip(again, known, strict=True)]
    return Pairs(n=len(columns[0]), part=scorer.part(columns, np.concatenate(groups)))


def excess_of_changes(
    name: str,
    metric: str,
    sides: tuple[Values, Values],
    pairing: Pairing,
    reruns: Sequence[Rerun],
    scorer: Scorer,
    clusters: Indices,
) -> Pairs | None:
    """Of the documents of all three, whether the trial changed the base's first run, and whether the base itself did.

    ``sides`` are trial and base, ``clusters`` the trial's.
    """
    trial, base = sides
    columns, groups = [], []
    for found, own in _again(name, metric, reruns, scorer):
        _, of_trial, of_rerun = np.intersect1d(pairing.base, own.base, assume_unique=True, return_indices=True)
        rows, first, second = pairing.trial[of_trial], pairing.base[of_trial], own.trial[of_rerun]
        known = trial.known[rows] & base.known[first] & found.known[second]
        rows, first, second = rows[known], first[known], second[known]
        columns.append(
            [_differ(trial.values[rows], base.values[first]), _differ(found.values[second], base.values[first])]
        )
        groups.append(clusters[rows])
    if not columns:
        return None
    changed = [np.concatenate(each) for each in zip(*columns, strict=True)]
    return Pairs(n=len(changed[0]), part=_CHANGED.part(changed, np.concatenate(groups)))


def _again(name: str, metric: str, reruns: Sequence[Rerun], scorer: Scorer) -> list[tuple[Values, Pairing]]:
    """Of a leaf what each rerun scored, and how its rows answer to the first run's."""
    return [
        (read_values(each.leaves[name].documents, metric, scorer), each.pairings[name])
        for each in reruns
        if name in each.pairings and metric in each.leaves[name].facts.metrics
    ]


def _differ(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    """Values may be lists."""
    return np.fromiter(map(operator.ne, one.tolist(), other.tolist()), dtype=float, count=len(one))
