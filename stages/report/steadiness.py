"""Engines that differ from themselves: which second runs of a sweep moved a score by more than chance, and the cells
that are left open by them.
"""

from collections.abc import Sequence

from stages.compare.verdict import INCONCLUSIVE, UNSTEADY
from stages.grid.multiplicity import holm
from stages.report.artifact import Row
from stages.report.config import TrialRow


def held_open(trials: Sequence[TrialRow], rows: Sequence[Row], confidence: float) -> list[Row]:
    """The rows, those inconclusive whose trial or base scored otherwise when it was evaluated again."""
    bases = {trial.name: trial.base for trial in trials}
    found = unsteady(rows, confidence)
    return [
        row | {"verdict": INCONCLUSIVE, "reason": UNSTEADY, "num_needed": None}
        if row["verdict"] is not None and {(row["trial"], row["task"]), (bases[row["trial"]], row["task"])} & found
        else row
        for row in rows
    ]


def unsteady(rows: Sequence[Row], confidence: float) -> set[tuple[str, str]]:
    """Trial and task of the second runs whose difference Holm's procedure keeps among all of the sweep."""
    again = [row for row in rows if row["rerun_n"] is not None]
    ps = [1.0 if row["rerun_difference_p"] is None else row["rerun_difference_p"] for row in again]
    adjusted = holm(ps).tolist()
    return {(row["trial"], row["task"]) for row, p in zip(again, adjusted, strict=True) if p <= 1 - confidence}
