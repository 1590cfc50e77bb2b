"""What documents say about one metric: the score of one side, and of trial and base on the documents they share.

A group is combined from its leaves: score and draws are means weighted by size, or plain means.  Each leaf is
resampled within itself, because a benchmark's composition is fixed and not drawn.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.compare.aggregation import Aggregate, is_mean, load_aggregation
from stages.compare.samples import Ends, Leaf, Pairing
from stages.errors import DataError
from stages.statistics import (
    NO_INTERVAL,
    Floats,
    Interval,
    normalize,
    percentile_interval,
    resample_aggregate,
    resample_means,
    wilson_interval,
)

# lm-eval's corpus metrics take up to 0.2 s for a thousand documents, and every resample calls them twice.
MAX_RESAMPLES_OF_AGGREGATES = 200


@dataclass(frozen=True, slots=True)
class Values:
    """One metric of all documents of a leaf; ``known`` is False where the document could not be scored."""

    values: NDArray[Any]
    known: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A metric's aggregation, None being the mean, with its bootstrap."""

    aggregate: Aggregate | None
    num_resamples: int

    def score(self, values: NDArray[Any]) -> float | None:
        """The score of these documents; None if there are none or it is not finite."""
        if not len(values):
            return None
        score = float(values.mean() if self.aggregate is None else self.aggregate(values.tolist()))
        return score if np.isfinite(score) else None

    def draws(self, columns: Sequence[NDArray[Any]], rng: np.random.Generator) -> Floats:
        """Scores (R, C) of bootstrap samples of the documents."""
        if self.aggregate is None:
            return resample_means(np.column_stack(columns), self.num_resamples, rng)
        return resample_aggregate(self.aggregate, [column.tolist() for column in columns], self.num_resamples, rng)


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """Trial or base: its score over every document it could be scored on."""

    n: int = 0
    num_missing: int = 0
    ends: Ends = Ends()
    score: float | None = None
    finished_score: float | None = None  # of the documents whose answers ended before the limit of their tokens
    num_right: float | None = None  # of a metric that is 0 or 1 for each document, where the score is their share
    draws: Floats | None = None
    baseline: float | None = None  # of a normalized side: score and draws are relative to it

    def interval(self, confidence: float) -> Interval:
        """Wilson's for a share of right documents, else the bootstrap's percentiles.

        Documents that all score alike tell the bootstrap nothing: it would call four wrong answers a certain 0.
        """
        if self.score is None or self.draws is None:
            return NO_INTERVAL
        if self.num_right is None:
            return NO_INTERVAL if np.ptp(self.draws) == 0 else percentile_interval(self.draws, confidence)
        low, high = wilson_interval(self.num_right, self.n, confidence)
        if self.baseline is None or low is None or high is None:
            return low, high
        return normalize(low, self.baseline), normalize(high, self.baseline)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Trial and base on the documents that both were scored on.

    ``discordant`` (base right and trial wrong, and the reverse) is of a metric that is 0 or 1 for each document, where
    the score is a mean over documents: McNemar's test says nothing of a mean of leaf means.
    """

    n: int = 0
    trial_score: float | None = None
    base_score: float | None = None
    discordant: tuple[int, int] | None = None
    paired_draws: Floats | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that is known of one metric of a leaf or a group; None for a side that was not evaluated."""

    trial: Side = Side()
    base: Side | None = None
    pairs: Pairs | None = None


def make_scorer(aggregation: Mapping[str, str], num_resamples: int, include_paths: Sequence[str]) -> Scorer:
    """The scorer of an ``aggregation`` as an evaluation names it."""
    if is_mean(aggregation):
        return Scorer(None, num_resamples)
    aggregate = load_aggregation(aggregation, include_paths)
    return Scorer(aggregate, min(num_resamples, MAX_RESAMPLES_OF_AGGREGATES))


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


def side_of_leaf(values: Values, scorer: Scorer, leaf: Leaf, rng: np.random.Generator | None = None) -> Side:
    """One side of one leaf; without a random stream, without its bootstrap."""
    scored = values.values[values.known]
    is_cut = leaf.is_cut
    score = scorer.score(scored)
    return Side(
        n=len(scored),
        num_missing=len(values.known) - len(scored),
        ends=leaf.ends,
        score=score,
        finished_score=None if is_cut is None else scorer.score(values.values[values.known & ~is_cut]),
        num_right=float(scored.sum()) if _is_right_or_wrong(scorer, scored) else None,
        draws=None if score is None or rng is None else scorer.draws([scored], rng)[:, 0],
    )


def pairs_of_leaf(
    trial_values: Values, base_values: Values, pairing: Pairing, scorer: Scorer, rng: np.random.Generator
) -> Pairs:
    """Both sides of one leaf, on paired documents that both were scored on."""
    known = trial_values.known[pairing.trial] & base_values.known[pairing.base]
    trial = trial_values.values[pairing.trial[known]]
    base = base_values.values[pairing.base[known]]
    trial_score, base_score = scorer.score(trial), scorer.score(base)
    if trial_score is None or base_score is None:
        return Pairs(n=len(trial))
    discordant = None
    if _is_right_or_wrong(scorer, trial) and _is_right_or_wrong(scorer, base):
        discordant = (int((base > trial).sum()), int((trial > base).sum()))
    return Pairs(
        n=len(trial),
        trial_score=trial_score,
        base_score=base_score,
        discordant=discordant,
        paired_draws=scorer.draws([trial, base], rng),
    )


def combine(parts: Sequence[Evidence], weight_by_size: bool) -> Evidence:
    """The group's evidence: without a score as soon as one leaf has none."""
    if len(parts) == 1:
        return parts[0]
    bases = [part.base for part in parts if part.base]
    pairs = [part.pairs for part in parts if part.pairs]
    return Evidence(
        trial=_combine_sides([part.trial for part in parts], weight_by_size),
        base=_combine_sides(bases, weight_by_size) if len(bases) == len(parts) else None,
        pairs=_combine_pairs(pairs, weight_by_size) if len(pairs) == len(parts) else None,
    )


def _combine_sides(sides: Sequence[Side], weight_by_size: bool) -> Side:
    weights = _weights([side.n for side in sides], weight_by_size)
    score = _weighted([side.score for side in sides], weights)
    rights = [side.num_right for side in sides if side.num_right is not None]
    is_share = weight_by_size and len(rights) == len(sides)
    return Side(
        n=sum(side.n for side in sides),
        num_missing=sum(side.num_missing for side in sides),
        ends=_combine_ends([side.ends for side in sides]),
        score=score,
        finished_score=_weighted([side.finished_score for side in sides], weights),
        num_right=sum(rights) if is_share else None,
        draws=_weighted_draws([side.draws for side in sides], weights),
    )


def _combine_ends(ends: Sequence[Ends]) -> Ends:
    """Sums; None where no leaf knows it."""
    columns = {each.name: [getattr(end, each.name) for end in ends] for each in fields(Ends)}
    known = {name: [value for value in values if value is not None] for name, values in columns.items()}
    sums: dict[str, Any] = {name: sum(values) if values else None for name, values in known.items()}
    return Ends(**sums)


def _combine_pairs(pairs: Sequence[Pairs], weight_by_size: bool) -> Pairs:
    weights = _weights([pair.n for pair in pairs], weight_by_size)
    trial_score = _weighted([pair.trial_score for pair in pairs], weights)
    if trial_score is None:
        return Pairs(n=sum(pair.n for pair in pairs))
    counts = [pair.discordant for pair in pairs if pair.discordant is not None]
    is_share = weight_by_size and len(counts) == len(pairs)
    return Pairs(
        n=sum(pair.n for pair in pairs),
        trial_score=trial_score,
        base_score=_weighted([pair.base_score for pair in pairs], weights),
        discordant=(sum(c[0] for c in counts), sum(c[1] for c in counts)) if is_share else None,
        paired_draws=_weighted_draws([pair.paired_draws for pair in pairs], weights),
    )


def _is_right_or_wrong(scorer: Scorer, values: NDArray[Any]) -> bool:
    return scorer.aggregate is None and bool(np.isin(values, (0.0, 1.0)).all())


def _weights(sizes: Sequence[int], weight_by_size: bool) -> list[int]:
    return list(sizes) if weight_by_size else [1] * len(sizes)


def _weighted(scores: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    return math.fsum(weight * score for weight, score in zip(weights, known, strict=True)) / sum(weights)


def _weighted_draws(draws: Sequence[Floats | None], weights: Sequence[int]) -> Floats | None:
    known = [draw for draw in draws if draw is not None]
    if len(known) < len(draws):
        return None
    num_resamples = min(len(draw) for draw in known)
    total = sum(weight * draw[:num_resamples] for weight, draw in zip(weights, known, strict=True))
    return np.asarray(total / sum(weights))
