"""What a difference to the base amounts to, in a word: the rule, the words, and how a report shows and explains it."""

from stages.compare.config import CompareConfig
from stages.statistics import Interval

LOWER, HIGHER, SAME = "lower", "higher", "not distinguishable"
MARKS = {LOWER: "▼", HIGHER: "▲", SAME: "≈"}
LEGEND = f"{MARKS[LOWER]} {LOWER}, {MARKS[HIGHER]} {HIGHER}, {MARKS[SAME]} {SAME} from the base"
RULE = (
    f"Lower ({MARKS[LOWER]}) or higher ({MARKS[HIGHER]}) if the difference's interval excludes 0 and McNemar's p, where"
    f" there is one, is below 1 − confidence; otherwise not distinguishable ({MARKS[SAME]}) from noise."
)


def verdict_of(difference: Interval, p: float | None, config: CompareConfig) -> str | None:
    """Which way the difference's interval leaves 0, if McNemar's test agrees where there is one.

    With few discordant documents the bootstrap alone cries wolf: 4 of 100, all in one direction, have an interval
    that excludes 0, and p = 0.125.
    """
    low, high = difference
    if low is None or high is None:
        return None
    if low <= 0 <= high or (p is not None and p >= 1 - config.confidence):
        return SAME
    return LOWER if high < 0 else HIGHER


def tone_of(verdict: str | None, higher_is_better: bool | None) -> str:
    """Whether a trial with this verdict is better or worse than its base, or the same; empty without a verdict."""
    if verdict not in (LOWER, HIGHER):
        return "same" if verdict else ""
    return "better" if (verdict == HIGHER) == (higher_is_better is not False) else "worse"
