"""What a difference to the base amounts to: the rule, its words, and how they are shown and explained."""

from typing import NamedTuple

from stages.compare.config import CompareSettings
from stages.statistics import Interval

LOWER, HIGHER, SAME = "lower", "higher", "not distinguishable"
MARKS = {LOWER: "▼", HIGHER: "▲", SAME: "≈"}
LEGEND = f"{MARKS[LOWER]} {LOWER}, {MARKS[HIGHER]} {HIGHER}, {MARKS[SAME]} {SAME} from the base"


class Verdict(NamedTuple):
    """A word, and its tone: whether the trial is better or worse than its base, or the same."""

    word: str
    tone: str


def verdict_of(
    difference: Interval, p: float | None, lower_is_better: bool, settings: CompareSettings
) -> Verdict | None:
    """Which way the difference's interval leaves 0, if McNemar's test agrees where there is one.

    With few discordant documents the bootstrap alone cries wolf: 4 of 100, all in one direction, have an interval
    that excludes 0, and p = 0.125.
    """
    low, high = difference
    if low is None or high is None:
        return None
    if low <= 0 <= high or (p is not None and p >= 1 - settings.confidence):
        return Verdict(SAME, "same")
    word = LOWER if high < 0 else HIGHER
    return Verdict(word, "better" if (word == LOWER) == lower_is_better else "worse")


def explained(settings: CompareSettings) -> str:
    """The rule in a report's words."""
    return (
        f"Lower ({MARKS[LOWER]}) or higher ({MARKS[HIGHER]}) if the difference's interval excludes 0 and McNemar's p, "
        f"where there is one, is below {1 - settings.confidence:g}; otherwise not distinguishable ({MARKS[SAME]}) from "
        f"noise. Each comparison is judged alone, so by chance a share of {1 - settings.confidence:g} of them would be "
        "called different."
    )
