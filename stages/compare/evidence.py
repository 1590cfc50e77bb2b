"""What the documents of one leaf say about one metric: the score of one side, and of trial and base on the documents
they share.
"""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.compare.aggregation import Aggregate, is_mean, load_aggregation
from stages.compare.design import Part
from stages.compare.samples import Ends, Indices, Leaf, Pairing
from stages.errors import DataError
from stages.evaluate.artifact import PASS_AT, RIGHT_OR_WRONG
from stages.statistics import Floats

# Of an aggregation other than a mean; lm-eval's corpus metrics take up to 0.2 s for a thousand documents.
MOST_GROUPS = 600


@dataclass(frozen=True, slots=True)
class Values:
    """One metric of all documents of a leaf; ``known`` is False where the document could not be scored."""

    values: NDArray[Any]
    known: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A metric's aggregation, None being the mean, and whether it is declared to be right or wrong, where it is."""

    aggregate: Aggregate | None
    is_right_or_wrong: bool | None = None
    lower_is_better: bool = False
    is_pass: bool = False  # the chance that one of several answers is right

    def score(self, values: NDArray[Any]) -> float | None:
        """The score of these documents; None if there are none or it is not finite."""
        if not len(values):
            return None
        try:
            score = float(values.mean() if self.aggregate is None else self.aggregate(values.tolist()))
        except (ValueError, ZeroDivisionError):
            return None
        return score if np.isfinite(score) else None

    def part(self, columns: Sequence[NDArray[Any]], clusters: Indices) -> Part | None:
        """Of one side, or of trial and base, whose difference and base are its columns then."""
        scores = [self.score(column) for column in columns]
        if any(score is None for score in scores):
            return None
        if self.aggregate is None:
            values, groups = np.column_stack([column.astype(float) for column in columns]), clusters
        else:
            values, groups = self._pseudo_values(columns, np.array(scores, dtype=float), clusters)
        found, num_changed = np.array(scores, dtype=float), len(clusters)
        if len(columns) == 2:
            values = np.column_stack([values[:, 0] - values[:, 1], values[:, 1]])
            found = np.array([found[0] - found[1], found[1]])
            num_changed = sum(map(operator.ne, *(column.tolist() for column in columns)))
        return Part(
            n=len(clusters),
            scores=tuple(found.tolist()),
            values=values,
            clusters=groups,
            num_changed=num_changed,
            is_right_or_wrong=self._all_right_or_wrong(columns),
            is_pass=self.is_pass,
        )

    def _all_right_or_wrong(self, columns: Sequence[NDArray[Any]]) -> bool:
        """As declared; of results older than the declaration, as the values look.  A part of a point is never that."""
        if self.aggregate is not None or self.is_right_or_wrong is False:
            return False
        return all(bool(((column == 0) | (column == 1)).all()) for column in columns)

    def _pseudo_values(
        self, columns: Sequence[NDArray[Any]], scores: Floats, clusters: Indices
    ) -> tuple[Floats, Indices]:
        """The delete-one jackknife's, of clusters or up to MOST_GROUPS groups of them: what each adds to the score."""
        assert self.aggregate is not None
        names, members = np.unique(clusters, return_inverse=True)
        num = min(len(names), MOST_GROUPS)
        groups, lists = members % num, [column.tolist() for column in columns]
        found = np.empty((num, len(columns)))
        for group in range(num):
            kept = np.flatnonzero(groups != group).tolist()
            for place, values in enumerate(lists):
                try:
                    found[group, place] = self.aggregate([values[each] for each in kept])
                except (ValueError, ZeroDivisionError):
                    found[group, place] = np.nan
        pseudo = num * scores - (num - 1) * found
        return np.where(np.isfinite(pseudo).all(), pseudo, scores), names[:num]


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """Trial or base: its score over every document it could be scored on."""

    n: int = 0
    num_missing: int = 0
    ends: Ends = Ends()
    score: float | None = None
    finished_score: float | None = None  # of the documents whose answers ended before the limit of their tokens
    part: Part | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Trial and base on the documents that both were scored on.

    ``worst``: on all that were paired, what the trial lacks as bad as can be and what the base lacks as good; None
    where nothing is missing, or where nobody knows how bad that is.  ``documents``: the trial's rows.
    """

    n: int = 0
    num_missing: int = 0
    trial_score: float | None = None
    base_score: float | None = None
    part: Part | None = None
    worst: Part | None = None
    documents: Indices | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that is known of one metric of a leaf; None for a side that was not evaluated.

    ``rerun`` and ``base_rerun``: trial and base evaluated again, beside their first run; ``excess``: whether documents
    changed between trial and base, beside whether they did between two runs of the base.
    """

    trial: Side = Side()
    base: Side | None = None
    pairs: Pairs | None = None
    rerun: Pairs | None = None
    base_rerun: Pairs | None = None
    excess: Pairs | None = None


def make_scorer(
    aggregation: Mapping[str, str], kinds: Sequence[str | None], lower_is_better: bool, include_paths: Sequence[str]
) -> Scorer:
    """The scorer of an ``aggregation`` as an evaluation names it; ``kinds`` are what both sides declare."""
    declared = {kind == RIGHT_OR_WRONG for kind in kinds if kind is not None}
    aggregate = None if is_mean(aggregation) else load_aggregation(aggregation, include_paths)
    return Scorer(aggregate, all(declared) if declared else None, lower_is_better, PASS_AT in kinds)


def read_values(documents: pa.Table, metric: str, scorer: Scorer) -> Values:
    """Numbers as they are; anything else is a JSON column, decoded for the task's own aggregation.

    A column is JSON for all leaves of a group where one of them has no numbers.
    """
    column = documents[metric]
    if pa.types.is_floating(column.type):
        numbers = column.to_numpy()
        return Values(numbers, ~np.isnan(numbers))
    found = [None if text is None else json.loads(text) for text in column.to_pylist()]
    known = np.array([value is not None for value in found], dtype=bool)
    if scorer.aggregate is None:
        if not all(isinstance(value, int | float) for value in found if value is not None):
            raise DataError(f"metric {metric} is a mean but its values are no numbers; give the task an aggregation")
        return Values(np.array([np.nan if value is None else value for value in found], dtype=float), known)
    values = np.empty(len(found), dtype=object)
    values[:] = found
    return Values(values, known)


def side_of_leaf(values: Values, scorer: Scorer, leaf: Leaf, clusters: Indices | None = None) -> Side:
    """One side of one leaf; without ``clusters``, without what its interval is made of."""
    scored = values.values[values.known]
    is_cut = leaf.is_cut
    return Side(
        n=len(scored),
        num_missing=len(values.known) - len(scored),
        ends=leaf.ends,
        score=scorer.score(scored),
        finished_score=None if is_cut is None else scorer.score(values.values[values.known & ~is_cut]),
        part=None if clusters is None else scorer.part([scored], clusters[values.known]),
    )


def pairs_of_leaf(trial: Values, base: Values, pairing: Pairing, scorer: Scorer, clusters: Indices) -> Pairs:
    """Both sides of one leaf, on paired documents that both were scored on."""
    columns = [trial.values[pairing.trial], base.values[pairing.base]]
    known = [trial.known[pairing.trial], base.known[pairing.base]]
    both, groups = known[0] & known[1], clusters[pairing.trial]
    part = scorer.part([column[both] for column in columns], groups[both])
    found = Pairs(n=int(both.sum()), num_missing=int((~both).sum()), part=part, documents=pairing.trial[both])
    if part is None:
        return found
    scores = [scorer.score(column[both]) for column in columns]
    found = replace(found, trial_score=scores[0], base_score=scores[1])
    return found if both.all() else replace(found, worst=_worst(scorer, columns, known, groups))


def _worst(
    scorer: Scorer, columns: Sequence[NDArray[Any]], known: Sequence[NDArray[np.bool_]], clusters: Indices
) -> Part | None:
    """Of scores from 0 to 1; of others there is no worst."""
    if scorer.aggregate is not None:
        return None
    if any(((each[is_known] < 0) | (each[is_known] > 1)).any() for each, is_known in zip(columns, known, strict=True)):
        return None
    bad = float(scorer.lower_is_better)
    filled = [np.where(known[0], columns[0], bad), np.where(known[1], columns[1], 1 - bad)]
    return scorer.part(filled, clusters)
