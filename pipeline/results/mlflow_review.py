"""What a reviewer meets in tracking: descriptions with the verdicts, and metrics and tags that runs are compared by.

Everything is made of the report; nothing here talks to a server.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.results.mlflow_table import TABLE
from pipeline.results.mlflow_view import COUNTS, DECISION, WHY, WORST, address
from stages.errors import redacted
from stages.report.artifact import DECISIONS, HTML, Summary, TrialVerdict

NOTE = "mlflow.note.content"  # what its pages show as the description, in Markdown
# Beginnings of names of metrics that come from the report, and not from a trial's own steps.
REVIEWED = ("suite/", "verdict/", "recovery/", "difference/")
MAX_NOTE, MAX_TAG = 7500, 400  # characters; MLflow takes 8,000
_OF_SUITES = ("mean", "recovery", "recovery_low", "recovery_high", "difference", "difference_low", "difference_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """Metrics and tags of one run, its description among them."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def parent_review(document: Summary, text: str, experiment_id: str, run_id: str) -> Review:
    """Of a plan's run: ``text``, the report's beginning, the number of each verdict, and the worst recovery."""
    judged = [each for each in document.trials if not each.is_base]
    artifacts = f"{_page(experiment_id, run_id)}/artifacts/report"
    links = f"[Report]({artifacts}/{HTML}) · [all trials]({address(experiment_id)})"
    said, table = _parted(_linked(text, artifacts))
    return Review(metrics=_sums(judged), tags={NOTE: shortened([said, links], table, MAX_NOTE)})


def experiment_note(document: Summary, experiment_id: str, run_id: str) -> str:
    """The sentences, and where the rest is."""
    run, said = _page(experiment_id, run_id), document.sentences
    lines = [line for model, text in said.items() for line in (f"**{_cell(model)}**: {_cell(text)}", "")]
    where = f"[Verdicts]({run}) · [report]({run}/artifacts/report/{HTML}) · [all trials]({address(experiment_id)})"
    return redacted("\n".join([*lines, where]) if sum(map(len, lines)) < MAX_NOTE else where)


def trial_review(document: Summary, trial: str, experiment_id: str, parent_id: str, run_id: str) -> Review | None:
    """Of a trial's run: its suites, what was decided and why, each task's verdict, and recoveries side by side; None of
    a report from before there were any.
    """
    verdict = next((each for each in document.trials if each.trial == trial), None)
    if verdict is None:
        return None
    rows = [row for row in document.rows if row["trial"] == trial]
    metrics: dict[str, float | None] = {} if verdict.is_base else _numbers(verdict)
    for mean in (mean for mean in document.suites if mean.trial == trial):
        metrics |= {f"suite/{mean.suite}/{each}": getattr(mean, each) for each in _OF_SUITES}
    for row in rows:
        metrics |= {f"{kind}/{row['task']}": row[kind] for kind in ("recovery", "difference")}
    note = _trial_note(verdict, rows, _page(experiment_id, parent_id), _page(experiment_id, run_id))
    tags = {f"verdict.{row['task']}": _word(row) for row in rows if row["verdict"] is not None}
    known = {each: float(value) for each, value in metrics.items() if value is not None}
    return Review(metrics=known, tags={**tags, **_decided(verdict), NOTE: note})


def shortened(before: Sequence[str], table: Sequence[str], most: int) -> str:
    """The paragraphs, and as many lines of a table as there is room for."""
    kept, head = list(table), "\n\n".join(filter(None, before))
    while kept and len(head) + sum(len(line) + 1 for line in kept) > most - 60:
        kept.pop()
    rest = [f"{len(table) - len(kept)} lines more are in the report."] if len(kept) < len(table) else []
    return redacted("\n\n".join([head, "\n".join(kept), *rest]))[:most]


def _page(experiment_id: str, run_id: str) -> str:
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def _parted(text: str) -> tuple[str, list[str]]:
    """What is said, and the lines of the table."""
    lines = text.splitlines()
    said = "\n".join(line for line in lines if not line.startswith("|"))
    return said.strip(), [line for line in lines if line.startswith("|")]


def _linked(text: str, artifacts: str) -> str:
    """Links to the report's files as links to the run's."""
    return re.sub(r"\]\(<([^<>]*)>\)", lambda found: f"]({artifacts}/{found[1]})", text)


def _sums(judged: Sequence[TrialVerdict]) -> dict[str, float]:
    decisions = Counter(each.decision for each in judged)
    found = {f"verdict/{word.replace(' ', '_')}": float(decisions[word]) for word in DECISIONS}
    for name, of_trial in COUNTS.items():
        known = [count for each in judged if (count := getattr(each, of_trial)) is not None]
        found |= {f"verdict/{name}": float(sum(known))} if known else {}
    recoveries = [each.worst_recovery for each in judged if each.worst_recovery is not None]
    return found | ({WORST: min(recoveries)} if recoveries else {})


def _numbers(verdict: TrialVerdict) -> dict[str, float | None]:
    counts = {f"verdict/{name}": getattr(verdict, of_trial) for name, of_trial in COUNTS.items()}
    return {**counts, WORST: verdict.worst_recovery, "verdict/p": verdict.p, "verdict/adjusted_p": verdict.adjusted_p}


def _decided(verdict: TrialVerdict) -> dict[str, str]:
    why = redacted("; ".join(verdict.reasons))[:MAX_TAG]
    return {DECISION: "base" if verdict.is_base else verdict.decision or "not judged"} | ({WHY: why} if why else {})


def _word(row: Mapping[str, Any]) -> str:
    """A cell's verdict, and whether the grid confirms it."""
    confirmed = {True: ", confirmed", False: ", not confirmed", None: ""}[row["is_confirmed"]]
    return f"{row['verdict']}{confirmed}"


def _trial_note(verdict: TrialVerdict, rows: Sequence[Mapping[str, Any]], parent: str, own: str) -> str:
    """What was decided of a trial and why, then its tasks."""
    said = "Base of its model" if verdict.is_base else f"**{(verdict.decision or 'not judged').capitalize()}**"
    reasons = "\n".join(f"- {_cell(reason)}" for reason in verdict.reasons)
    links = f"[All trials]({parent}) · [report]({parent}/artifacts/report/{HTML})"
    if not verdict.is_base:
        links += f" · [what it answers otherwise]({own}/artifacts/{TABLE})"
    table = ["| task | n | score | base | difference | verdict |", "|---|--:|--:|--:|--:|---|", *map(_line, rows)]
    return shortened([said, reasons, links], table, MAX_NOTE)


def _line(row: Mapping[str, Any]) -> str:
    scores = f"{_number(row['n'], ',d')} | {_number(row['score'])} | {_number(row['base_score'])}"
    difference = f"{_number(row['difference'], '+.4f')} {_ends(row)}"
    return f"| {_cell(row['task'])} | {scores} | {difference} | {_word(row) if row['verdict'] else row['status']} |"


def _ends(row: Mapping[str, Any]) -> str:
    low, high = row["difference_low"], row["difference_high"]
    return "" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"


def _number(value: float | None, pattern: str = ".4f") -> str:
    return "–" if value is None else format(value, pattern)


def _cell(text: str) -> str:
    escaped = "".join(f"\\{character}" if character in "\\|*`<>[]" else character for character in text)
    return " ".join(escaped.split())
