"""A suite's mean difference: its error from those of its tasks, its interval, its verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from stages.compare.artifact import Error
from stages.compare.verdict import BEYOND, DEGRADED, INCONCLUSIVE, MISSING, verdict_of
from stages.grid.joint import Member, joint
from stages.inference import critical_value, ratio_interval, upper_p
from stages.statistics import NO_INTERVAL, Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanDifference:
    """Of a suite; ``worst_loss`` and ``reason`` are as an Error has them, ``reason`` with the task that it is of."""

    value: float
    base: float
    variance: float
    base_variance: float
    covariance: float
    freedom: float | None
    lower_is_better: bool
    worst_loss: float | None
    reason: str | None
    unknown: tuple[tuple[str, str], ...]  # tasks that are taken as wholly correlated

    def interval(self, confidence: float) -> Interval:
        """Student's, or the normal's where all members have that."""
        half = critical_value(confidence, self.freedom) * math.sqrt(self.variance)
        return self.value - half, self.value + half

    def recovery_interval(self, confidence: float) -> Interval:
        """Fieller's, of the trial's mean over the base's, or the reverse."""
        low, high = self.interval(confidence)
        if low is None or high is None:
            return NO_INTERVAL
        critical = critical_value(confidence, self.freedom)
        ends = ratio_interval(self.base, self.value, (low, high), self.covariance, self.base_variance, critical)
        if ends[0] is None or ends[1] is None or not self.lower_is_better:
            return ends
        return (1 / ends[1] if ends[1] > 0 else None), (1 / ends[0] if ends[0] > 0 else None)

    def loss_p(self, loss: float) -> float | None:
        """One-sided, that the true loss is ``loss`` or more, had all that is missing gone against the trial."""
        if self.reason is not None or self.worst_loss is None:
            return None
        gain = -self.value if self.lower_is_better else self.value
        return upper_p((gain - self.worst_loss + loss) / math.sqrt(self.variance), self.freedom)

    def judged(self, margin: float, confidence: float) -> tuple[str, str | None]:
        """The verdict and, of what is inconclusive, why; a loss may be beyond the margin."""
        low, high = gains(self.interval(confidence), self.lower_is_better)
        if self.reason is not None or low is None or high is None:
            return INCONCLUSIVE, self.reason
        verdict, lost = verdict_of((low, high), margin), self.worst_loss
        if verdict != INCONCLUSIVE and (lost is None or verdict_of((low - lost, high - lost), margin) != verdict):
            return INCONCLUSIVE, MISSING
        return verdict, BEYOND if verdict == DEGRADED and high < -margin else None


def mean_difference(members: Sequence[Member], lower_is_better: bool) -> MeanDifference | None:
    """The plain mean of the members; None where it has no error."""
    num, errors = len(members), [member.error for member in members]
    together = joint(members)
    covariance = together.covariance.sum(axis=(0, 2)) / max(1, num) ** 2
    if covariance[0, 0] <= 0:
        return None
    losses = [error.worst_loss for error in errors]
    open_ones = [f"{member.task}: {member.error.reason}" for member in members if member.error.reason is not None]
    return MeanDifference(
        value=fmean(member.difference for member in members),
        base=fmean(member.base for member in members),
        variance=float(covariance[0, 0]),
        base_variance=float(covariance[1, 1]),
        covariance=float(covariance[0, 1]),
        freedom=_freedom(errors),
        lower_is_better=lower_is_better,
        worst_loss=None if None in losses else fmean(loss for loss in losses if loss is not None),
        reason=open_ones[0] if open_ones else None,
        unknown=together.unknown,
    )


def gains(difference: Interval, lower_is_better: bool) -> Interval:
    """Of how much better the trial is."""
    low, high = difference
    return difference if low is None or high is None or not lower_is_better else (-high, -low)


def _freedom(errors: Sequence[Error]) -> float | None:
    """Satterthwaite's, of variances that add up; None where every one is as good as known."""
    variances = np.array([error.difference for error in errors])
    spread = sum(each**2 / error.freedom for each, error in zip(variances, errors, strict=True) if error.freedom)
    return float(variances.sum() ** 2 / spread) if spread else None
