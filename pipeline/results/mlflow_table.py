"""The documents that a trial answers otherwise than its base as a table that MLflow's pages can show and search."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.planning.plan import Plan, TrialPlan
from pipeline.results.mlflow_numbers import shown
from pipeline.steps.roles import under
from pipeline.store.store import Store
from stages.compare.artifact import read_flips
from stages.report.artifact import most_flips

TABLE, TABLES_TAG = "flips.json", "mlflow.loggedArtifacts"  # the tag says which artifacts are tables
TAGGED = json.dumps([{"path": TABLE, "type": "table"}])
# The first two are what MLflow's page of runs lays side by side before anybody chooses: a row for each document, which
# names its task, and what happened to it.  A row for each task would show one document's change as the task's.
COLUMNS = (
    "document",
    "change",
    "question",
    "target",
    "base_answer",
    "trial_answer",
    "base_score",
    "trial_score",
)
_MOST = 1000  # characters of a text


def write_table(store: Store, plan: Plan, trial: TrialPlan, directory: Path) -> Path | None:
    """A file in ``directory``; None where nothing is compared yet, or nothing answered otherwise."""
    most = most_flips(sum(len(under(each.steps, "compare")) for each in plan.trials.values()))
    rows = list(_rows(store, trial, most))
    if not rows:
        return None
    path = directory / TABLE
    path.write_text(json.dumps({"columns": COLUMNS, "data": rows}), encoding="utf-8")
    return path


def _rows(store: Store, trial: TrialPlan, most: int) -> Iterator[Sequence[Any]]:
    for task, ref in under(trial.steps, "compare").items():
        if (place := store.find(ref)) is not None:
            for flip in read_flips(place, most)[0].to_pylist():
                yield _row(task, flip)


def _row(task: str, flip: Mapping[str, Any]) -> Sequence[Any]:
    answers = [_shown(flip[f"{side}_answers"], flip[f"{side}_extracted"]) for side in ("base", "trial")]
    question = "\n".join([flip["question"] or "", *(f"- {choice}" for choice in flip["choices"] or ())])
    document = f"{task} {flip['leaf']} {flip['doc_id']}"
    scores = [None if score is None else shown(score) for score in (flip["base_score"], flip["trial_score"])]
    return [document, flip["change"], question[-_MOST:], (flip["target"] or "")[:_MOST], *answers, *scores]


def _shown(answers: Sequence[str] | None, extracted: str | None) -> str:
    """An answer's end is what was scored."""
    text = "\n---\n".join(answers or ())[-_MOST:]
    return text if extracted is None else f"{text}\n[taken as {extracted}]"
