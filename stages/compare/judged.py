"""The verdict of a row, with its margins and what would have been seen."""

import math
from collections.abc import Sequence
from typing import Any

from stages.compare.asked import Ask
from stages.compare.config import CompareConfig
from stages.compare.design import Estimate
from stages.compare.intervals import Intervals, loss_ps, why_open
from stages.compare.verdict import BEYOND, DEGRADED, EQUIVALENT, INCONCLUSIVE, MISSING, NOISE, verdict_of
from stages.compare.whole import Compared
from stages.inference import critical_value, detectable_difference, documents_needed
from stages.statistics import Interval

Row = dict[str, Any]


def judged(
    ask: Ask, intervals: Intervals, wide_margin_p: float | None, config: CompareConfig, lower_is_better: bool
) -> Row:
    """The verdict, on the raw scale or, of leaves with unlike baselines, on the normalized one."""
    each = _judged_side(ask)
    if each is None or each.difference is None or each.pairs is None:
        return {}
    margin, wide = _margins(ask, config, lower_is_better)
    found, interval = each.difference, intervals.of(each.difference)
    gain, worst = (_gain(ends, lower_is_better) for ends in (interval, intervals.of(each.worst)))
    verdict, reason = verdict_of(gain, margin), why_open(found)
    if reason is None and each.pairs.num_missing and verdict != INCONCLUSIVE:
        reason = None if verdict == verdict_of(worst, margin) else MISSING
    if reason is None and verdict == EQUIVALENT and margin < 2 * _noise(ask, found.n, intervals, config.confidence):
        reason = NOISE
    if reason is not None:
        verdict = INCONCLUSIVE
    elif verdict == DEGRADED and (gain[1] or 0) < -margin:
        reason = BEYOND
    return {
        "margin": margin,
        "wide_margin": wide,
        "detectable_difference": _detectable(found, interval, config.confidence),
        "is_verdict_normalized": ask.baseline is None,
        "verdict_p": intervals.p(found),
        "wide_margin_p": wide_margin_p,
        "verdict": verdict,
        "reason": reason,
        "num_needed": _needed(found, margin, config) if verdict == INCONCLUSIVE and reason is None else None,
    }


def _detectable(found: Estimate, interval: Interval, confidence: float) -> float | None:
    error = error_by(found, interval, confidence)
    return None if error is None else detectable_difference(error, confidence, found.freedom)


def error_by(found: Estimate, interval: Interval, confidence: float) -> float | None:
    """By the interval, which is never of zero width."""
    low, high = interval
    return None if low is None or high is None else (high - low) / 2 / critical_value(confidence, found.freedom)


def wide_margin_ps(asked: Sequence[Ask], config: CompareConfig, lower_is_better: bool) -> list[float | None]:
    """That as much was lost as the wide margin of each, or more: the larger p of what was found and, where something is
    missing, of the worst that it may have been.
    """
    tried = [_differences(_judged_side(ask)) for ask in asked]
    margins = [_margins(ask, config, lower_is_better)[1] for ask in asked]
    known = [(one, wide) for of, wide in zip(tried, margins, strict=True) for one in of if one is not None]
    ps = loss_ps([one for one, _ in known], [wide for _, wide in known], lower_is_better)
    found = {id(one): p for (one, _), p in zip(known, ps, strict=True)}
    return [_largest([found.get(id(one)) for one in of]) for of in tried]


def _judged_side(ask: Ask) -> Compared | None:
    return ask.raw if ask.baseline is not None else ask.normalized


def _differences(each: Compared | None) -> list[Estimate | None]:
    if each is None or each.pairs is None:
        return []
    return [each.difference, each.worst] if each.pairs.num_missing else [each.difference]


def _largest(ps: Sequence[float | None]) -> float | None:
    """None as soon as one is not known."""
    known = [p for p in ps if p is not None]
    return max(known) if known and len(known) == len(ps) else None


def _noise(ask: Ask, n: int, intervals: Intervals, confidence: float) -> float:
    """The error of a difference between two runs of one checkpoint on ``n`` documents, the larger one of those known;
    0 where nothing was evaluated again.
    """
    errors = [(each.n, error_by(each, intervals.of(each), confidence)) for each in ask.runs.noise]
    return max((error * math.sqrt(min(1.0, again / n)) for again, error in errors if error is not None), default=0.0)


def _margins(ask: Ask, config: CompareConfig, lower_is_better: bool) -> tuple[float, float]:
    if lower_is_better:
        base = ask.raw.pairs.base_score if ask.raw.pairs else None
        margin = config.loss_margin_percent / 100 * abs(base or 0.0)
        return margin, margin * config.wide_margin_points / config.margin_points
    unit = 1.0 if ask.baseline is None else (1 - ask.baseline) / 100
    return config.margin_points * unit, config.wide_margin_points * unit


def _gain(difference: Interval, lower_is_better: bool) -> Interval:
    low, high = difference
    if low is None or high is None or not lower_is_better:
        return low, high
    return -high, -low


def _needed(found: Estimate, margin: float, config: CompareConfig) -> int | None:
    if (found.covariance is None and found.counts is None) or margin <= 0:
        return None
    variance = 0.0 if found.covariance is None else float(found.covariance[0, 0]) * found.n
    return documents_needed(found.value, variance, margin, config.confidence)
