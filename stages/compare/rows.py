"""The rows of a comparison: what the evidence on a metric amounts to, as numbers with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.compare.artifact import NORMALIZED, Error
from stages.compare.asked import Ask, Runs
from stages.compare.config import CompareConfig
from stages.compare.design import Estimate
from stages.compare.evidence import Side
from stages.compare.intervals import Intervals, score_interval, why_open
from stages.compare.judged import Row, error_by, judged, wide_margin_ps
from stages.compare.whole import Compared
from stages.inference import critical_value, mcnemar_mid_p, ratio_interval
from stages.statistics import NO_INTERVAL, Interval, mcnemar_p, recovery_of

LEAST_BASE_POINTS = 5.0  # of a base nearer to guessing there is no share to recover


def rows(asked: Sequence[Ask], config: CompareConfig, lower_is_better: bool) -> list[Row]:
    """The fields of Numbers from ``n`` on; absent or None is what could not be measured."""
    found = _intervals(asked, config.confidence)
    wide_ps = wide_margin_ps(asked, config, lower_is_better)
    return [_row(ask, found, p, config, lower_is_better) for ask, p in zip(asked, wide_ps, strict=True)]


def error_of(
    compared: Compared | None, numbers: Mapping[str, Any], prefix: str, confidence: float, lower_is_better: bool
) -> Error | None:
    """Variances of a difference and its base: the first by its interval, which is never of zero width."""
    if compared is None or compared.difference is None or compared.difference.covariance is None:
        return None
    found, covariance = compared.difference, compared.difference.covariance
    error = error_by(found, (numbers[f"{prefix}difference_low"], numbers[f"{prefix}difference_high"]), confidence)
    if error is None:
        return None
    return Error(
        difference=error**2,
        base=float(covariance[1, 1]),
        covariance=float(covariance[0, 1]),
        freedom=found.freedom,
        worst_loss=_worst_loss(compared, found, -1 if lower_is_better else 1),
        reason=why_open(found),
    )


def _worst_loss(compared: Compared, found: Estimate, sign: int) -> float | None:
    if compared.pairs is None or not compared.pairs.num_missing:
        return 0.0
    return None if compared.worst is None else max(0.0, sign * (found.value - compared.worst.value))


def _intervals(asked: Sequence[Ask], confidence: float) -> Intervals:
    """Every interval of a difference, at once."""
    sides = [side for ask in asked for side in (ask.raw, ask.normalized) if side is not None]
    of_sides = [each for side in sides for each in (side.difference, side.worst)]
    of_runs = [each for ask in asked for each in ask.runs.all]
    return Intervals([each for each in (*of_sides, *of_runs) if each is not None], confidence)


def _row(
    ask: Ask, intervals: Intervals, wide_margin_p: float | None, config: CompareConfig, lower_is_better: bool
) -> Row:
    raw, scaled = ask.raw, ask.normalized
    found = _columns(raw, intervals, config, lower_is_better)
    on_scale = _columns(scaled, intervals, config, lower_is_better) if scaled is not None else {}
    if not lower_is_better and not _can_recover(scaled or raw, config):
        for numbers in (found, on_scale):
            numbers |= dict.fromkeys(("recovery", "recovery_low", "recovery_high"))
    for name in ("score_low", "score_high"):
        if on_scale.get(name) is not None:
            on_scale[name] = max(on_scale[name], 0.0 if name == "score_low" else on_scale["score"])
    found |= {name: on_scale.get(raw_name) for name, raw_name in NORMALIZED.items()}
    found["normalized_unfloored"] = None if scaled is None or scaled.score is None else scaled.score.value
    found |= _run_columns(ask.runs, intervals)
    return found | judged(ask, intervals, wide_margin_p, config, lower_is_better)


def _run_columns(runs: Runs, intervals: Intervals) -> Row:
    found: Row = {}
    for prefix, each in (("rerun_", runs.rerun), ("base_rerun_", runs.base_rerun)):
        if each is not None:
            found |= {f"{prefix}n": each.n, f"{prefix}num_changed": each.num_changed}
            found |= _difference_columns(prefix, each, intervals)
    if (excess := runs.excess) is not None:
        low, high = intervals.of(excess)
        found |= {"excess_flips": excess.value, "excess_flips_low": low, "excess_flips_high": high}
        found["excess_flips_p"] = intervals.p(excess)
    return found


def _columns(each: Compared, intervals: Intervals, config: CompareConfig, lower_is_better: bool) -> Row:
    return {
        **_side_columns(each, config.confidence),
        **(_base_columns(each.base) if each.base else {}),
        **(_pair_columns(each, intervals, config.confidence, lower_is_better) if each.pairs else {}),
    }


def _side_columns(each: Compared, confidence: float) -> Row:
    side, score = each.trial, each.score
    low, high = NO_INTERVAL if score is None else score_interval(score, confidence)
    return {
        "n": side.n,
        "num_missing": side.num_missing,
        **side.ends.columns,
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


def _pair_columns(each: Compared, intervals: Intervals, confidence: float, lower_is_better: bool) -> Row:
    pairs, found = each.pairs, each.difference
    assert pairs is not None
    if found is None or pairs.trial_score is None or pairs.base_score is None:
        return {"num_pairs": pairs.n}
    recovery = recovery_of(pairs.trial_score, pairs.base_score, lower_is_better)
    low, high = NO_INTERVAL if recovery is None else _recovery_interval(each, intervals, confidence, lower_is_better)
    return {
        "num_pairs": pairs.n,
        "paired_score": pairs.trial_score,
        "paired_base_score": pairs.base_score,
        "recovery": recovery,
        "recovery_low": low,
        "recovery_high": high,
        **_difference_columns("", found, intervals),
        "worst_difference_low": intervals.of(each.worst)[1 if lower_is_better else 0],
        "num_changed": found.num_changed,
        "num_clusters": found.num_clusters,
        "design_effect": found.design_effect,
        **_flips(found),
    }


def _difference_columns(prefix: str, found: Estimate, intervals: Intervals) -> Row:
    low, high = intervals.of(found)
    names = ("difference", "difference_low", "difference_high", "difference_p")
    numbers = (found.value, low, high, intervals.p(found))
    return {f"{prefix}{name}": number for name, number in zip(names, numbers, strict=True)}


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


def _recovery_interval(each: Compared, intervals: Intervals, confidence: float, lower_is_better: bool) -> Interval:
    found, pairs, (low, high) = each.difference, each.pairs, intervals.of(each.difference)
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
