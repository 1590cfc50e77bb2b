"""The rows of a comparison: what the evidence on a metric amounts to, as numbers with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stages.compare.artifact import NORMALIZED, Error
from stages.compare.config import CompareConfig
from stages.compare.design import Estimate
from stages.compare.evidence import Side
from stages.compare.intervals import difference_intervals, difference_p, loss_p, score_interval, why_open
from stages.compare.verdict import BEYOND, DEGRADED, INCONCLUSIVE, MISSING, verdict_of
from stages.compare.whole import Compared
from stages.inference import critical_value, documents_needed, mcnemar_mid_p, ratio_interval
from stages.statistics import NO_INTERVAL, Interval, mcnemar_p, recovery_of

LEAST_BASE_POINTS = 5.0  # of a base nearer to guessing there is no share to recover

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A row that is asked for: its evidence, raw and normalized, and what a difference is judged by.

    ``baseline``: what guessing scores, on the raw scale; None of leaves with unlike ones, whose task is judged on the
    normalized scale.
    """

    raw: Compared
    normalized: Compared | None = None
    baseline: float | None = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ends:
    difference: Interval = NO_INTERVAL
    worst: Interval = NO_INTERVAL


def rows(asked: Sequence[Ask], config: CompareConfig, lower_is_better: bool) -> list[Row]:
    """The fields of Numbers from ``n`` on; absent or None is what could not be measured."""
    sides = [side for ask in asked for side in (ask.raw, ask.normalized) if side is not None]
    ends = dict(zip(map(id, sides), _all_ends(sides, config.confidence), strict=True))
    return [_row(ask, ends, config, lower_is_better) for ask in asked]


def error_of(
    compared: Compared | None, numbers: Mapping[str, Any], prefix: str, confidence: float, lower_is_better: bool
) -> Error | None:
    """Variances of a difference and its base: the first by its interval, which is never of zero width."""
    if compared is None or compared.difference is None or compared.difference.covariance is None:
        return None
    low, high = numbers[f"{prefix}difference_low"], numbers[f"{prefix}difference_high"]
    if low is None or high is None:
        return None
    found = compared.difference
    half = (high - low) / 2 / critical_value(confidence, found.freedom)
    assert found.covariance is not None
    return Error(
        difference=half**2,
        base=float(found.covariance[1, 1]),
        covariance=float(found.covariance[0, 1]),
        freedom=found.freedom,
        worst_loss=_worst_loss(compared, found, -1 if lower_is_better else 1),
        reason=why_open(found),
    )


def _worst_loss(compared: Compared, found: Estimate, sign: int) -> float | None:
    if compared.pairs is None or not compared.pairs.num_missing:
        return 0.0
    return None if compared.worst is None else max(0.0, sign * (found.value - compared.worst.value))


def _all_ends(sides: Sequence[Compared], confidence: float) -> list[_Ends]:
    """Every interval of a difference, at once."""
    estimates = [each for side in sides for each in (side.difference, side.worst) if each is not None]
    found = dict(zip(map(id, estimates), difference_intervals(estimates, confidence), strict=True))
    return [
        _Ends(
            difference=found.get(id(side.difference), NO_INTERVAL),
            worst=found.get(id(side.worst), NO_INTERVAL),
        )
        for side in sides
    ]


def _row(ask: Ask, ends: Mapping[int, _Ends], config: CompareConfig, lower_is_better: bool) -> Row:
    raw, scaled = ask.raw, ask.normalized
    found = _columns(raw, ends[id(raw)], config, lower_is_better)
    on_scale = _columns(scaled, ends[id(scaled)], config, lower_is_better) if scaled is not None else {}
    if not lower_is_better and not _can_recover(scaled or raw, config):
        for numbers in (found, on_scale):
            numbers |= dict.fromkeys(("recovery", "recovery_low", "recovery_high"))
    for name in ("score_low", "score_high"):
        if on_scale.get(name) is not None:
            on_scale[name] = max(on_scale[name], 0.0 if name == "score_low" else on_scale["score"])
    found |= {name: on_scale.get(raw_name) for name, raw_name in NORMALIZED.items()}
    return found | _judged(ask, ends, config, lower_is_better)


def _columns(each: Compared, ends: _Ends, config: CompareConfig, lower_is_better: bool) -> Row:
    return {
        **_side_columns(each, config.confidence),
        **(_base_columns(each.base) if each.base else {}),
        **(_pair_columns(each, ends, config.confidence, lower_is_better) if each.pairs else {}),
    }


def _side_columns(each: Compared, confidence: float) -> Row:
    side, score = each.trial, each.score
    low, high = NO_INTERVAL if score is None else score_interval(score, confidence)
    return {
        "n": side.n,
        "num_missing": side.num_missing,
        **asdict(side.ends),
        "score": side.score,
        "score_low": low,
        "score_high": high,
        "finished_score": side.finished_score,
        "interval": None if score is None or low is None else score.method,
        "is_right_or_wrong": None if score is None else score.counts is not None,
        "num_clusters": None if score is None else score.num_clusters,
        "design_effect": None if score is None else score.design_effect,
    }


def _base_columns(base: Side) -> Row:
    return {
        "base_n": base.n,
        "base_num_missing": base.num_missing,
        "base_num_cut": base.ends.num_cut,
        "base_num_cut_in_thoughts": base.ends.num_cut_in_thoughts,
        "base_num_stopped": base.ends.num_stopped,
        "base_num_thinking": base.ends.num_thinking,
        "base_score": base.score,
        "base_finished_score": base.finished_score,
    }


def _pair_columns(each: Compared, ends: _Ends, confidence: float, lower_is_better: bool) -> Row:
    pairs, found = each.pairs, each.difference
    assert pairs is not None
    if found is None or pairs.trial_score is None or pairs.base_score is None:
        return {"num_pairs": pairs.n}
    recovery = recovery_of(pairs.trial_score, pairs.base_score, lower_is_better)
    low, high = NO_INTERVAL if recovery is None else _recovery_interval(each, ends, confidence, lower_is_better)
    worst = ends.worst[1 if lower_is_better else 0]
    return {
        "num_pairs": pairs.n,
        "paired_score": pairs.trial_score,
        "paired_base_score": pairs.base_score,
        "recovery": recovery,
        "recovery_low": low,
        "recovery_high": high,
        "difference": found.value,
        "difference_low": ends.difference[0],
        "difference_high": ends.difference[1],
        "difference_p": difference_p(found, confidence),
        "worst_difference_low": worst,
        "num_changed": found.num_changed,
        "num_clusters": found.num_clusters,
        "design_effect": found.design_effect,
        **_flips(found),
    }


def _flips(found: Estimate) -> Row:
    if found.counts is None:
        return {}
    exact = mcnemar_p(*found.counts)
    return {
        "num_base_only_right": found.counts[0],
        "num_trial_only_right": found.counts[1],
        "mcnemar_p": exact,
        "mcnemar_mid_p": mcnemar_mid_p(*found.counts, exact),
    }


def _recovery_interval(each: Compared, ends: _Ends, confidence: float, lower_is_better: bool) -> Interval:
    found, pairs, (low, high) = each.difference, each.pairs, ends.difference
    if found is None or pairs is None or pairs.base_score is None or found.covariance is None:
        return NO_INTERVAL
    if low is None or high is None:
        return NO_INTERVAL
    base_variance, covariance = float(found.covariance[1, 1]), float(found.covariance[0, 1])
    critical = critical_value(confidence, found.freedom)
    low, high = ratio_interval(pairs.base_score, found.value, (low, high), covariance, base_variance, critical)
    if low is None or high is None:
        return NO_INTERVAL
    if lower_is_better:
        return (1 / high if high > 0 else None), (1 / low if low > 0 else None)
    return max(low, 0.0), high


def _can_recover(each: Compared, config: CompareConfig) -> bool:
    """Whether the base is so far from guessing that a share of what it reaches says something."""
    base, pairs = each.base_estimate, each.pairs
    if base is None or pairs is None or pairs.base_score is None:
        return True
    points = pairs.base_score if each.is_normalized else 100 * pairs.base_score
    low, _ = score_interval(base, config.confidence)
    return points >= LEAST_BASE_POINTS and (low is None or low > 0)


def _judged(ask: Ask, ends: Mapping[int, _Ends], config: CompareConfig, lower_is_better: bool) -> Row:
    """The verdict, on the raw scale or, of leaves with unlike baselines, on the normalized one."""
    each = ask.raw if ask.baseline is not None else ask.normalized
    if each is None or each.difference is None or each.pairs is None:
        return {}
    margin, wide = _margins(ask, config, lower_is_better)
    found, interval = each.difference, ends[id(each)]
    verdict, reason = verdict_of(_gain(interval.difference, lower_is_better), margin), why_open(found)
    if reason is None and each.pairs.num_missing and verdict != INCONCLUSIVE:
        reason = None if verdict == verdict_of(_gain(interval.worst, lower_is_better), margin) else MISSING
    if reason is not None:
        verdict = INCONCLUSIVE
    elif verdict == DEGRADED and (_gain(interval.difference, lower_is_better)[1] or 0) < -margin:
        reason = BEYOND
    return {
        "margin": margin,
        "wide_margin": wide,
        "is_verdict_normalized": ask.baseline is None,
        "verdict_p": difference_p(found, config.confidence),
        "wide_margin_p": _wide_margin_p(each, wide, lower_is_better),
        "verdict": verdict,
        "reason": reason,
        "num_needed": _needed(found, margin, config) if verdict == INCONCLUSIVE and reason is None else None,
    }


def _wide_margin_p(each: Compared, wide: float, lower_is_better: bool) -> float | None:
    """The larger one of what was found and, where something is missing, the worst that it may have been."""
    assert each.difference is not None and each.pairs is not None
    asked = [each.difference, each.worst] if each.pairs.num_missing else [each.difference]
    found = [None if one is None else loss_p(one, wide, lower_is_better) for one in asked]
    known = [p for p in found if p is not None]
    return max(known) if len(known) == len(found) else None


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
