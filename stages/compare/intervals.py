"""The intervals of estimates, and where nothing can be said.

A share of right documents, or a difference of two, keeps a score interval (Wilson's, Tango's) of the counts of all
leaves, stretched by how much more the design varies than so many independent documents would; anything else has
Student's, or that of subset means where documents are few.
"""

import math
from collections.abc import Sequence

import numpy as np

from stages.compare.design import Estimate
from stages.inference import (
    critical_value,
    few_p,
    subset_interval,
    tango_interval,
    tango_statistic,
    two_sided_p,
    upper_p,
)
from stages.statistics import NO_INTERVAL, Interval, wilson_interval

FEWEST_CLUSTERS = FEWEST_CHANGED = 10
FEWEST_PROBLEMS = 60  # of pass@k, whose interval holds too seldom below


class Intervals:
    """Of differences, and the p that they are 0, by the estimates that they are of; none where there is no estimate."""

    def __init__(self, estimates: Sequence[Estimate], confidence: float) -> None:
        self._found = dict(zip(map(id, estimates), difference_intervals(estimates, confidence), strict=True))
        self._ps = dict(zip(map(id, estimates), difference_ps(estimates, confidence), strict=True))

    def of(self, estimate: Estimate | None) -> Interval:
        return self._found.get(id(estimate), NO_INTERVAL)

    def p(self, estimate: Estimate | None) -> float | None:
        """The interval leaves 0 out exactly where it is below 1 - confidence."""
        return self._ps.get(id(estimate))


def difference_intervals(estimates: Sequence[Estimate], confidence: float) -> list[Interval]:
    """Of differences; those that are right or wrong all at once."""
    found = [_graded(each, confidence) if each.counts is None else NO_INTERVAL for each in estimates]
    scored = [place for place, each in enumerate(estimates) if each.counts is not None and _has_error(each)]
    if scored:
        of = [estimates[place] for place in scored]
        lost, won = np.array([each.counts for each in of]).T
        n = np.array([each.n for each in of])
        ends = tango_interval(lost, won, n, [critical_value(confidence, each.freedom) for each in of])
        for place, each, low, high, middle in zip(scored, of, *ends, (won - lost) / n, strict=True):
            stretched = each.value + each.stretch * (low - middle), each.value + each.stretch * (high - middle)
            found[place] = float(stretched[0]), float(stretched[1])
    return found


def difference_ps(estimates: Sequence[Estimate], confidence: float) -> list[float | None]:
    """That the true difference is 0, of each."""

    def p(each: Estimate, statistic: float | None) -> float | None:
        if each.few is not None:
            return None if len(each.few) < 2 else subset_interval(each.few, confidence)[1]
        return None if statistic is None else two_sided_p(statistic, each.freedom)

    return list(map(p, estimates, _statistics(estimates, [0.0] * len(estimates))))


def loss_ps(estimates: Sequence[Estimate], losses: Sequence[float], lower_is_better: bool) -> list[float | None]:
    """That the true loss of each is so large or larger, one-sided; the interval's worse end is a smaller loss exactly
    where this is below half of 1 - confidence.
    """
    sign = -1.0 if lower_is_better else 1.0

    def p(each: Estimate, loss: float, statistic: float | None) -> float | None:
        if each.few is not None:
            return None if len(each.few) < 2 else few_p(sign * each.few + loss)
        return None if statistic is None else upper_p(sign * statistic, each.freedom)

    return list(map(p, estimates, losses, _statistics(estimates, [-sign * loss for loss in losses])))


def _statistics(estimates: Sequence[Estimate], differences: Sequence[float]) -> list[float | None]:
    """Of the hypotheses that the true differences are these, in their own standard errors; those that are right or
    wrong all at once.
    """
    found = [_in_errors(*each) for each in zip(estimates, differences, strict=True)]
    scored = [place for place, each in enumerate(estimates) if each.counts is not None and _has_error(each)]
    if scored:
        of = [estimates[place] for place in scored]
        lost, won = np.array([each.counts for each in of]).T
        n, value, stretch = np.array([(each.n, each.value, each.stretch) for each in of]).T
        asked = np.array([differences[place] for place in scored])
        shifted = np.clip((won - lost) / n + (asked - value) / stretch, -1, 1)
        shifted = np.where(np.abs(shifted) < 1e-12, 0.0, shifted)
        for place, statistic in zip(scored, tango_statistic(lost, won, n, shifted), strict=True):
            found[place] = float(statistic)
    return found


def _in_errors(each: Estimate, difference: float) -> float | None:
    if each.counts is not None or each.covariance is None or each.covariance[0, 0] <= 0:
        return None
    return (each.value - difference) / math.sqrt(each.covariance[0, 0])


def score_interval(each: Estimate, confidence: float) -> Interval:
    """Of one side's score."""
    if each.counts is None:
        return _of_pass(each, _graded(each, confidence)) if each.is_pass else _graded(each, confidence)
    if not _has_error(each):
        return NO_INTERVAL
    low, high = wilson_interval(each.counts[1], each.n, confidence, critical_value(confidence, each.freedom))
    if low is None or high is None:
        return NO_INTERVAL
    middle, (least, most) = each.counts[1] / each.n, each.bounds
    return max(least, each.value + each.stretch * (low - middle)), min(
        most, each.value + each.stretch * (high - middle)
    )


def _of_pass(each: Estimate, ends: Interval) -> Interval:
    """Student's on the scale of log-odds: near 1 it covers what the plain one does not."""
    (least, most), high = each.bounds, ends[1]
    share = (each.value - least) / (most - least)
    if high is None or not 0 < share < 1:
        return NO_INTERVAL
    half = (high - each.value) / (most - least) / (share * (1 - share))
    odds = math.log(share / (1 - share))
    low, high = (1 / (1 + math.exp(-(odds + sign * half))) for sign in (-1, 1))
    return least + low * (most - least), least + high * (most - least)


def _has_error(each: Estimate) -> bool:
    """All documents in one cluster say nothing of others."""
    return each.num_clusters is None or each.num_clusters > 1


def _graded(each: Estimate, confidence: float) -> Interval:
    """Documents that all say the same tell nothing of others, nor do few of them where passing is nearly sure."""
    if each.is_pass and each.n < FEWEST_PROBLEMS:
        return NO_INTERVAL
    if each.covariance is None or each.covariance[0, 0] <= 0 or each.freedom is None:
        return NO_INTERVAL
    if each.few is not None:
        return subset_interval(each.few, confidence)[0]
    half = critical_value(confidence, each.freedom) * math.sqrt(each.covariance[0, 0])
    return each.value - half, each.value + half


def why_open(found: Estimate) -> str | None:
    """Why nothing can be said of a difference, whatever its interval."""
    num_units = found.num_clusters if found.few is None else len(found.few)
    if num_units is not None and num_units < min(FEWEST_CLUSTERS, found.n):
        return f"under {FEWEST_CLUSTERS} clusters"
    if found.is_pass and found.n < FEWEST_PROBLEMS:
        return f"under {FEWEST_PROBLEMS} documents"
    if found.counts is None and found.num_changed < FEWEST_CHANGED:
        return f"fewer than {FEWEST_CHANGED} documents changed"
    return None
