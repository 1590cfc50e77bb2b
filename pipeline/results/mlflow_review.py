"""What a reviewer meets in tracking: descriptions with the verdicts, and metrics and tags that runs are compared by.

Everything is made of the report; nothing here talks to a server.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.results.mlflow_table import TABLE
from pipeline.results.mlflow_view import COUNTS, DECISION, RANK, WHY, WORST, WORST_TASK, address, run_address
from stages.errors import redacted
from stages.report.artifact import DECISIONS, HTML, MOST_SENTENCES, Summary, TrialVerdict

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
    links = f"[Report]({_report(experiment_id, run_id)}) · [all trials]({address(experiment_id)})"
    said, table = _parted(_linked(text, experiment_id, run_id))
    return Review(metrics=_sums(judged), tags={NOTE: shortened([*_said(said), links], table, MAX_NOTE)})


def experiment_note(document: Summary, experiment_id: str, run_id: str) -> str:
    """How many formats may be shipped and where to read of it, in the one line that MLflow's pages show of it, then the
    sentences.
    """
    run, report = run_address(experiment_id, run_id), _report(experiment_id, run_id)
    where = f"[All trials]({address(experiment_id)}) · [verdicts]({run}) · [report]({report})"
    several = len(document.sentences) > 1
    said = [f"{f'**{_cell(model)}:** ' * several}{_cell(text)}" for model, text in document.sentences.items()]
    first = f"{document.headline}. {where}" if document.headline else where
    return redacted("\n\n".join([first, *_said(said)]))


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
    metrics[RANK] = document.trials.index(verdict) + 1
    note = _trial_note(verdict, rows, _links(verdict, experiment_id, parent_id, run_id))
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


def _said(sentences: Sequence[str]) -> list[str]:
    """The first of them, no more than a description has room for beside other things, and how many there are more."""
    kept = list(sentences[: MOST_SENTENCES + 1])
    while kept and sum(map(len, kept)) > MAX_NOTE // 2:
        kept.pop()
    rest = len(sentences) - len(kept)
    return [*kept, *([f"{rest} models more are in the report."] if rest else [])]


def _report(experiment_id: str, run_id: str) -> str:
    return run_address(experiment_id, run_id, f"report/{HTML}")


def _parted(text: str) -> tuple[list[str], list[str]]:
    """The paragraphs of what is said, and the lines of the table."""
    lines = text.splitlines()
    said = [line.strip() for line in lines if line.strip() and not line.startswith("|")]
    return said, [line for line in lines if line.startswith("|")]


def _linked(text: str, experiment_id: str, run_id: str) -> str:
    """Links to the report's files as links to the run's."""

    def link(found: re.Match[str]) -> str:
        return f"]({run_address(experiment_id, run_id, f'report/{found[1]}')})"

    return re.sub(r"\]\(<([^<>]*)>\)", link, text)


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
    return {WORST: verdict.worst_recovery, "verdict/p": verdict.p, "verdict/adjusted_p": verdict.adjusted_p, **counts}


def _decided(verdict: TrialVerdict) -> dict[str, str]:
    decision = "base" if verdict.is_base else verdict.decision or "not judged"
    known = {WORST_TASK: verdict.worst_task or "", WHY: redacted("; ".join(verdict.reasons))[:MAX_TAG]}
    return {DECISION: decision} | {key: text for key, text in known.items() if text}


def _word(row: Mapping[str, Any]) -> str:
    """A cell's verdict, and whether the grid confirms it."""
    confirmed = {True: ", confirmed", False: ", not confirmed", None: ""}[row["is_confirmed"]]
    return f"{row['verdict']}{confirmed}"


def _links(verdict: TrialVerdict, experiment_id: str, parent_id: str, run_id: str) -> str:
    links = f"[All trials]({address(experiment_id)}) · [verdicts]({run_address(experiment_id, parent_id)})"
    links += f" · [report]({_report(experiment_id, parent_id)})"
    otherwise = f" · [what it answers otherwise]({run_address(experiment_id, run_id, TABLE)})"
    return links if verdict.is_base else f"{links}{otherwise}"


def _trial_note(verdict: TrialVerdict, rows: Sequence[Mapping[str, Any]], links: str) -> str:
    """What was decided of a trial and why, then its tasks."""
    said = "Base of its model" if verdict.is_base else f"**{(verdict.decision or 'not judged').capitalize()}**"
    reasons = "\n".join(f"- {_cell(reason)}" for reason in verdict.reasons)
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
