"""What a reviewer meets in tracking: descriptions with the verdicts, and metrics and tags that runs are compared by.

Everything is made of the report; nothing here talks to a server.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.results.mlflow_notes import parent_note, trial_links, trial_note, verdict_word
from pipeline.results.mlflow_points import Points, points_of_mean, points_of_row
from pipeline.results.mlflow_view import (
    COUNTS,
    DECISION,
    LEANING,
    RANK,
    WHY,
    WORST,
    WORST_POINTS,
    WORST_TASK,
    mean_points_name,
    points_name,
)
from stages.errors import redacted
from stages.report.artifact import DECISIONS, Summary, TrialVerdict

NOTE = "mlflow.note.content"  # what its pages show as the description, in Markdown
# Beginnings and ends of names of metrics that come from the report, and not from a trial's own steps.
_REVIEWED = ("suite/", "verdict/", "recovery/", "difference/", "sweep/")
_REVIEWED_ENDS = tuple(f"points{end}" for end in ("", "_low", "_high"))
MAX_TAG = 400  # characters
_OF_SUITES = ("mean", "recovery", "recovery_low", "recovery_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """Metrics and tags of one run, its description among them."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def is_reviewed(metric: str) -> bool:
    """Whether a metric comes from the report."""
    return metric.startswith(_REVIEWED) or metric.endswith(_REVIEWED_ENDS)


def parent_review(document: Summary, experiment_id: str, run_id: str, runs: Mapping[str, str]) -> Review:
    """Of a plan's run: what to ship, a table of its trials, the number of each verdict, and the worst recovery.

    ``runs`` are the ids of the trials' runs.  No metric has a name that a trial's has: in charts it would stand among
    them.
    """
    judged = [each for each in document.trials if not each.is_base]
    return Review(metrics=_sums(judged), tags={NOTE: parent_note(document, experiment_id, run_id, runs)})


def trial_review(document: Summary, trial: str, experiment_id: str, parent_id: str, run_id: str) -> Review | None:
    """Of a trial's run: its suites, what was decided and why, each task's verdict, and what charts lay side by side;
    None of a report from before there were any.
    """
    verdict = next((each for each in document.trials if each.trial == trial), None)
    if verdict is None:
        return None
    rows = [row for row in document.rows if row["trial"] == trial]
    metrics: dict[str, float | None] = {} if verdict.is_base else _numbers(verdict)
    for mean in (mean for mean in document.suites if mean.trial == trial):
        metrics |= _ends(mean_points_name(mean.suite), points_of_mean(mean))
        metrics |= {f"suite/{mean.suite}/{each}": getattr(mean, each) for each in _OF_SUITES}
    for row in rows:
        metrics[f"recovery/{row['task']}"] = row["recovery"]
        metrics |= _ends(points_name(row["task"]), points_of_row(row))
    metrics[RANK] = document.trials.index(verdict) + 1
    note = trial_note(document, verdict, rows, trial_links(verdict, experiment_id, parent_id, run_id))
    tags = {f"verdict.{row['task']}": verdict_word(row) for row in rows if row["verdict"] is not None}
    known = {each: float(value) for each, value in metrics.items() if value is not None}
    return Review(metrics=known, tags={**tags, **_decided(verdict), NOTE: note})


def _ends(name: str, points: Points) -> dict[str, float | None]:
    """A difference and its interval, in points."""
    return {name: points.difference, f"{name}_low": points.low, f"{name}_high": points.high}


def _sums(judged: Sequence[TrialVerdict]) -> dict[str, float]:
    decisions = Counter(each.decision for each in judged)
    found = {f"sweep/{word.replace(' ', '_')}": float(decisions[word]) for word in DECISIONS}
    for name, of_trial in COUNTS.items():
        known = [count for each in judged if (count := getattr(each, of_trial)) is not None]
        found |= {f"sweep/{name}": float(sum(known))} if known else {}
    recoveries = [each.worst_recovery for each in judged if each.worst_recovery is not None]
    return found | ({"sweep/worst_recovery": min(recoveries)} if recoveries else {})


def _numbers(verdict: TrialVerdict) -> dict[str, float | None]:
    counts = {f"verdict/{name}": getattr(verdict, of_trial) for name, of_trial in COUNTS.items()}
    worst = {WORST: verdict.worst_recovery, WORST_POINTS: verdict.worst_points}
    return {**worst, "verdict/p": verdict.p, "verdict/adjusted_p": verdict.adjusted_p, **counts}


def _decided(verdict: TrialVerdict) -> dict[str, str]:
    decision = "base" if verdict.is_base else verdict.decision or "not judged"
    known = {
        LEANING: verdict.leaning or "",
        WORST_TASK: verdict.worst_task or "",
        WHY: redacted("; ".join(verdict.reasons))[:MAX_TAG],
    }
    return {DECISION: decision} | {key: text for key, text in known.items() if text}
