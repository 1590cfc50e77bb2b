"""What is asked of a trial that is shipped: of each suite's mean and each task of a gate, from a report's numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.compare.verdict import BEYOND, DEGRADED, INCONCLUSIVE, MISSING, NOISE
from stages.grid.shipping import Requirement
from stages.grid.suites import MeanDifference, gains
from stages.report.artifact import Points, Row, SuiteMean, points_of
from stages.statistics import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A requirement, the numbers it is of, and why nothing can be said of it.

    ``measured`` is how much better the trial is, ``most_lost`` the most that it may have lost, with all that is missing
    counted against it; both in the unit of the requirement.  ``num_used``: documents that were asked, of ``size``.
    """

    requirement: Requirement
    numbers: SuiteMean | Row | None = None
    points: Points = Points()
    measured: float | None = None
    most_lost: float | None = None
    num_used: int = 0
    size: int | None = None
    why: str | None = None

    @property
    def are_all_used(self) -> bool:
        """Whether no document is left to be asked."""
        return self.size is not None and self.num_used >= self.size


def of_suite(mean: SuiteMean, found: MeanDifference | None, rows: Sequence[Row], sizes: Sequence[int | None]) -> Asked:
    """That its mean lost less than its margin; ``rows`` and ``sizes`` are of its tasks."""
    margin, known = mean.margin or 0.0, [size for size in sizes if size is not None]
    without = Asked(
        requirement=Requirement(name=mean.suite, margin=margin),
        numbers=mean,
        num_used=sum(map(_num_asked, rows)),
        size=sum(known) if len(known) == len(sizes) else None,
        why=mean.reason,
    )
    if found is None:
        return without
    gain = gains((mean.difference_low, mean.difference_high), found.lower_is_better)
    requirement = Requirement(name=mean.suite, margin=margin, p=found.loss_p(margin), gain=gain)
    known_ends = None not in (gain[0], found.worst_loss)
    return replace(
        without,
        requirement=requirement,
        points=_points_of_mean(mean, found),
        measured=-found.value if found.lower_is_better else found.value,
        most_lost=(found.worst_loss or 0.0) - (gain[0] or 0.0) if known_ends else None,
        why=mean.reason if requirement.p is None else None,
    )


def of_task(task: str, row: Row | None, size: int | None) -> Asked:
    """That it lost less than its wide margin."""
    if row is None or row["wide_margin"] is None:
        status = None if row is None or row["status"] == "measured" else row["status"]
        return Asked(requirement=Requirement(name=task, margin=0.0), why=status or "not compared with a base")
    p = None if is_open(row) else row["wide_margin_p"]
    gain = gain_of(row)
    return Asked(
        requirement=Requirement(name=task, margin=row["wide_margin"], p=p, gain=gain),
        numbers=row,
        points=points_of(row),
        measured=_judged(row, "difference"),
        most_lost=_most_lost(row, gain),
        num_used=_num_asked(row),
        size=size,
        why=None if p is not None else row["reason"] or "it has no interval",
    )


def is_open(row: Row) -> bool:
    """Whether nothing can be said of a cell, whatever its interval; missing documents are in its bounds, and noise that
    goes both ways is in its interval.
    """
    return bool(row["verdict"] == INCONCLUSIVE and row["reason"] not in (None, MISSING, NOISE))


def is_bad(row: Row) -> bool:
    """Whether a loss that matters is shown, by itself and in the grid."""
    return bool(row["is_confirmed"] and row["verdict"] == DEGRADED and row["reason"] == BEYOND)


def gain_of(row: Row) -> Interval:
    """How much better a cell's trial is than its base, on the scale that its verdict is of."""
    prefix = "normalized_" if row["is_verdict_normalized"] else ""
    difference = row[f"{prefix}difference_low"], row[f"{prefix}difference_high"]
    return gains(difference, row["higher_is_better"] is False)


def points_gained(row: Row) -> float:
    """By how much a cell's trial is better than its base, in ``points_of`` it."""
    return points_of(row).scale * float(_judged(row, "difference") or 0.0)


def _judged(row: Row, name: str) -> float | None:
    """A number on the scale of the verdict; positive where the trial is better."""
    value: float | None = row[f"normalized_{name}" if row["is_verdict_normalized"] else name]
    return value if value is None or row["higher_is_better"] is not False else -value


def _most_lost(row: Row, gain: Interval) -> float | None:
    if gain[0] is None:
        return None
    # The worst end is known of raw scores alone, from which it is as far on any other scale.
    side = "difference_high" if row["higher_is_better"] is False else "difference_low"
    worst, end = row["worst_difference_low"], row[side]
    if worst is None or end is None or row["is_verdict_normalized"]:
        return -gain[0]
    return abs(float(worst) - float(end)) - gain[0]


def _num_asked(row: Row) -> int:
    return int((row["n"] or 0) + (row["num_missing"] or 0))


def _points_of_mean(mean: SuiteMean, found: MeanDifference) -> Points:
    if found.lower_is_better:
        return Points(100 / abs(found.base), "% of the base's mean") if found.base else Points(1.0, "")
    return Points(1.0) if mean.normalized else Points()
