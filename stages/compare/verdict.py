"""What a difference to the base amounts to: the rule, its words, and how they are shown and explained."""

from stages.compare.config import CompareSettings
from stages.statistics import Interval

EQUIVALENT, DEGRADED, IMPROVED, INCONCLUSIVE = "equivalent", "degraded", "improved", "inconclusive"
MARKS = {EQUIVALENT: "=", DEGRADED: "▼", IMPROVED: "▲", INCONCLUSIVE: "?"}
LOOKS = {EQUIVALENT: "same", DEGRADED: "worse", IMPROVED: "better", INCONCLUSIVE: "open"}
LEGEND = (
    f"{MARKS[EQUIVALENT]} equivalent to the base within the margin, {MARKS[DEGRADED]} degraded, {MARKS[IMPROVED]} "
    f"improved, {MARKS[INCONCLUSIVE]} inconclusive"
)
BEYOND = "beyond margin"  # of a degraded cell
NOISE = "margin within noise"  # of one that would be equivalent
UNSTEADY = "differs from itself"  # of one whose trial or base scored otherwise when it was evaluated again
MISSING = "missing"  # of one that would have another verdict if all that is missing had gone against the trial


def verdict_of(gain: Interval, margin: float) -> str:
    """From the interval of how much better the trial is: within the margin on both sides, below 0, above 0, or none."""
    low, high = gain
    if low is None or high is None:
        return INCONCLUSIVE
    if -margin < low and high < margin:
        return EQUIVALENT
    return DEGRADED if high < 0 else IMPROVED if low > 0 else INCONCLUSIVE


def explained(settings: CompareSettings) -> str:
    """The rule in a report's words."""
    return (
        f"From the difference's own {100 * settings.confidence:g} % interval and a margin that is fixed before the run "
        f"({settings.margin_points:g} points of the scale from guessing to perfect, {settings.loss_margin_percent:g} % "
        "of the base's where lower is better, unless a task has its own): equivalent "
        f"({MARKS[EQUIVALENT]}) if it lies within the margin on both sides, degraded ({MARKS[DEGRADED]}) or improved "
        f"({MARKS[IMPROVED]}) if it leaves out 0 and is not equivalent, else inconclusive ({MARKS[INCONCLUSIVE]}), "
        "with the number of documents that would decide if the difference is what was found. So is what "
        "has fewer than 10 clusters, if graded fewer than 10 documents that changed, and what would be another "
        "verdict if all that is missing had gone against the trial. Beside a margin (sees): the smallest true "
        "difference that would have been told from 0 four times of five, with the flips that there were. Where a "
        "checkpoint was evaluated twice nothing is equivalent within twice the error of a difference of its runs "
        f"({NOISE}), and all is inconclusive whose trial or base moved its own score by more than chance, among all "
        f"second runs of the sweep (Holm; {UNSTEADY}). Each "
        "comparison is judged alone: of those without "
        f"any difference up to {50 * (1 - settings.confidence):g} % are called degraded and as many improved."
    )
