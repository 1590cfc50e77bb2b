"""One or several leaves as one: scores, missing documents, and the estimates of a side and of a difference.

A group is the mean of its leaves, weighted by size, or plain; on the normalized scale every leaf counts from its own
baseline.  All estimates are on the unfloored scale: only the score that is shown ends at 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.compare.design import Estimate, Part, estimate
from stages.compare.evidence import Evidence, Pairs, Side
from stages.compare.samples import Ends


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a leaf's scores are counted from, and in what steps: 0 and 1, or a baseline and 100 / (1 - it)."""

    baseline: float | None = None

    @property
    def origin(self) -> float:
        return self.baseline or 0.0

    @property
    def unit(self) -> float:
        return 1.0 if self.baseline is None else 100 / (1 - self.baseline)

    def of(self, score: float) -> float:
        return score if self.baseline is None else (score - self.origin) * self.unit


RAW = Scale()


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A leaf or a whole task on one scale: what a row of a comparison is made of."""

    trial: Side
    base: Side | None = None
    pairs: Pairs | None = None
    score: Estimate | None = None
    difference: Estimate | None = None
    worst: Estimate | None = None  # the difference if all that is missing were as bad as can be
    base_estimate: Estimate | None = None  # of the base on the pairs
    is_normalized: bool = False


def compared(leaves: Sequence[Evidence], weight_by_size: bool, scales: Sequence[Scale]) -> Compared:
    """Without a score as soon as one leaf has none; the normalized score that is shown counts none below 0."""
    bases = [leaf.base for leaf in leaves if leaf.base]
    pairs = [leaf.pairs for leaf in leaves if leaf.pairs]
    found = Compared(
        trial=_side([leaf.trial for leaf in leaves], weight_by_size, scales),
        base=_side(bases, weight_by_size, scales) if len(bases) == len(leaves) else None,
        score=_estimate([leaf.trial.part for leaf in leaves], weight_by_size, scales, is_side=True),
        is_normalized=any(scale.baseline is not None for scale in scales),
    )
    if len(pairs) < len(leaves):
        return found
    parts = [pair.part for pair in pairs]
    base_parts = [None if part is None else part.base for part in parts]
    worst = [pair.worst if pair.num_missing else pair.part for pair in pairs]
    return replace(
        found,
        pairs=_pairs(pairs, weight_by_size, scales),
        difference=_estimate(parts, weight_by_size, scales),
        worst=_estimate(worst, weight_by_size, scales) if any(pair.num_missing for pair in pairs) else None,
        base_estimate=_estimate(base_parts, weight_by_size, scales, is_side=True),
    )


def difference_of(pairs: Sequence[Pairs | None], weight_by_size: bool, scales: Sequence[Scale]) -> Estimate | None:
    """None as soon as one leaf has none."""
    parts = [None if each is None else each.part for each in pairs]
    return _estimate(parts, weight_by_size, scales)


def on_scale(found: Compared, scale: Scale) -> Compared:
    """A leaf, or a task whose leaves have one baseline; the score that is shown ends at 0."""

    def shown(side: Side) -> Side:
        scores = [None if each is None else max(0.0, scale.of(each)) for each in (side.score, side.finished_score)]
        return replace(side, score=scores[0], finished_score=scores[1])

    def moved(score: float | None) -> float | None:
        return None if score is None else scale.of(score)

    pairs = found.pairs
    sides = [None if each is None else each.on(scale.origin, scale.unit) for each in (found.score, found.base_estimate)]
    changes = [None if each is None else each.on(0.0, scale.unit) for each in (found.difference, found.worst)]
    return Compared(
        trial=shown(found.trial),
        base=found.base and shown(found.base),
        pairs=pairs and replace(pairs, trial_score=moved(pairs.trial_score), base_score=moved(pairs.base_score)),
        score=sides[0],
        difference=changes[0],
        worst=changes[1],
        base_estimate=sides[1],
        is_normalized=True,
    )


def _estimate(
    parts: Sequence[Part | None], weight_by_size: bool, scales: Sequence[Scale], is_side: bool = False
) -> Estimate | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    weights = weights_of([part.n for part in known], weight_by_size)
    units = [scale.unit for scale in scales]
    scores = [part.scores[0] - (scale.origin if is_side else 0) for part, scale in zip(known, scales, strict=True)]
    value = math.fsum(weight * unit * score for weight, unit, score in zip(weights, units, scores, strict=True))
    if not is_side:
        return estimate(known, weights, units, value)
    least, most = (
        math.fsum(weight * scale.of(end) for weight, scale in zip(weights, scales, strict=True)) for end in (0.0, 1.0)
    )
    return estimate(known, weights, units, value, (least, most))


def _side(sides: Sequence[Side], weight_by_size: bool, scales: Sequence[Scale]) -> Side:
    sizes = [side.n for side in sides]
    is_floored = any(scale.baseline is not None for scale in scales)

    def shown(scores: Sequence[float | None]) -> float | None:
        return _mean(scores, sizes, weight_by_size, scales, is_floored)

    return Side(
        n=sum(sizes),
        num_missing=sum(side.num_missing for side in sides),
        ends=_ends([side.ends for side in sides]),
        score=shown([side.score for side in sides]),
        finished_score=shown([side.finished_score for side in sides]),
    )


def _ends(ends: Sequence[Ends]) -> Ends:
    """Sums; None where no leaf knows it."""
    columns = [each.columns for each in ends]
    known = {name: [each[name] for each in columns if each[name] is not None] for name in columns[0]}
    sums: dict[str, Any] = {name: sum(values) if values else None for name, values in known.items()}
    return Ends(**sums)


def _pairs(pairs: Sequence[Pairs], weight_by_size: bool, scales: Sequence[Scale]) -> Pairs:
    sizes = [pair.n for pair in pairs]
    return Pairs(
        n=sum(sizes),
        num_missing=sum(pair.num_missing for pair in pairs),
        trial_score=_mean([pair.trial_score for pair in pairs], sizes, weight_by_size, scales),
        base_score=_mean([pair.base_score for pair in pairs], sizes, weight_by_size, scales),
    )


def _mean(
    scores: Sequence[float | None],
    sizes: Sequence[int],
    weight_by_size: bool,
    scales: Sequence[Scale],
    is_floored: bool = False,
) -> float | None:
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    on_scale = [scale.of(score) for score, scale in zip(known, scales, strict=True)]
    floored = [max(0.0, score) for score in on_scale] if is_floored else on_scale
    weights = sizes if weight_by_size else [1] * len(sizes)
    return math.fsum(weight * score for weight, score in zip(weights, floored, strict=True)) / sum(weights)


def weights_of(sizes: Sequence[int], weight_by_size: bool) -> list[float]:
    """Of leaves, which add up to 1."""
    return [size / sum(sizes) for size in sizes] if weight_by_size else [1 / len(sizes)] * len(sizes)
