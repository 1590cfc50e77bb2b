"""What is asked of a trial that is shipped: of each suite's mean and each task of a gate, from a report's numbers."""

from dataclasses import dataclass

from stages.compare.verdict import BEYOND, DEGRADED, INCONCLUSIVE, MISSING, NOISE
from stages.grid.shipping import Requirement
from stages.grid.suites import MeanDifference, gains
from stages.report.artifact import Row, SuiteMean
from stages.statistics import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A requirement, the numbers it is of, and why nothing can be said of it; ``size``: all documents of a task."""

    requirement: Requirement
    numbers: SuiteMean | Row | None = None
    size: int | None = None
    why: str | None = None


def of_suite(mean: SuiteMean, found: MeanDifference | None) -> Asked:
    """That its mean lost less than its margin."""
    margin = mean.margin or 0.0
    if found is None:
        requirement = Requirement(name=mean.suite, margin=margin)
    else:
        gain = gains((mean.difference_low, mean.difference_high), found.lower_is_better)
        requirement = Requirement(name=mean.suite, margin=margin, p=found.loss_p(margin), gain=gain)
    return Asked(requirement=requirement, numbers=mean, why=mean.reason if requirement.p is None else None)


def of_task(task: str, row: Row | None, size: int | None) -> Asked:
    """That it lost less than its wide margin."""
    if row is None or row["wide_margin"] is None:
        status = None if row is None or row["status"] == "measured" else row["status"]
        return Asked(requirement=Requirement(name=task, margin=0.0), why=status or "not compared with a base")
    p = None if is_open(row) else row["wide_margin_p"]
    requirement = Requirement(name=task, margin=row["wide_margin"], p=p, gain=gain_of(row))
    why = None if p is not None else row["reason"] or "it has no interval"
    return Asked(requirement=requirement, numbers=row, size=size, why=why)


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
