"""A task's scores against random guessing: 0 at the baseline, 100 for perfect.

Source: huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization.  The scale keeps the order of scores, so it
is laid over scores, the ends of their intervals and every bootstrap draw alike.
"""

from collections.abc import Sequence
from dataclasses import replace

from stages.compare.evidence import Evidence, Pairs, Side, combine
from stages.statistics import normalize


def normalize_leaf(part: Evidence, baseline: float) -> Evidence:
    """The evidence on the normalized scale."""
    base = None if part.base is None else _normalize_side(part.base, baseline)
    pairs = None if part.pairs is None else _normalize_pairs(part.pairs, baseline)
    return Evidence(trial=_normalize_side(part.trial, baseline), base=base, pairs=pairs)


def normalize_task(
    parts: Sequence[Evidence], weight_by_size: bool, baseline: float | None, baselines: Sequence[float]
) -> Evidence:
    """The plain mean of leaves that each have a baseline of their own, else the raw mean normalized as a whole."""
    if baseline is not None:
        return normalize_leaf(combine(parts, weight_by_size), baseline)
    return combine([normalize_leaf(*pair) for pair in zip(parts, baselines, strict=True)], weight_by_size=False)


def _normalize_side(side: Side, baseline: float) -> Side:
    score = None if side.score is None else normalize(side.score, baseline)
    draws = None if side.draws is None else normalize(side.draws, baseline)
    return replace(side, score=score, draws=draws, baseline=baseline)


def _normalize_pairs(pairs: Pairs, baseline: float) -> Pairs:
    if pairs.trial_score is None or pairs.base_score is None or pairs.paired_draws is None:
        return pairs
    return replace(
        pairs,
        trial_score=normalize(pairs.trial_score, baseline),
        base_score=normalize(pairs.base_score, baseline),
        paired_draws=normalize(pairs.paired_draws, baseline),
    )
