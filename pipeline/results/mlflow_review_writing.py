"""Write into MLflow what a report says of its runs: each thing once, and over nothing that a person has written."""

import math
import time
from collections.abc import Mapping
from typing import Any

from pipeline.results.mlflow_notes import experiment_note
from pipeline.results.mlflow_numbers import metrics
from pipeline.results.mlflow_review import NOTE, Review, is_reviewed
from pipeline.results.mlflow_view import LEANING, VIEW_TAG, WHY, WORST_TASK, view_of
from pipeline.steps.fingerprint import fingerprint
from stages.report.artifact import Summary

REVIEW_TAG, NOTE_TAG = (
    "digest.review",
    "digest.description",
)  # digests of what was written here, and of its description alone
VERDICT_TAGS = "verdict."


def write_review(client: Any, run: Any, review: Review) -> None:
    """What of a report is this run's; a description that somebody has rewritten stays."""
    from mlflow.entities import RunTag

    digest = fingerprint([dict(review.metrics), dict(review.tags)])
    if run.data.tags.get(REVIEW_TAG) == digest:
        return
    now_ms = int(time.time() * 1000)
    gone = {key for key in run.data.metrics if is_reviewed(key)} - review.metrics.keys()
    values = {**review.metrics, **dict.fromkeys(gone, math.nan)}
    tags = _unless_rewritten(run.data.tags, review.tags) | {REVIEW_TAG: digest}
    client.log_batch(
        run.info.run_id,
        metrics=metrics(values, now_ms),
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    ours = {key for key in run.data.tags if key.startswith(VERDICT_TAGS) or key in (WHY, LEANING, WORST_TASK)}
    for key in ours - review.tags.keys():
        client.delete_tag(run.info.run_id, key)


def write_experiment(client: Any, parent: Any, document: Summary) -> None:
    """A description, and the view of its runs that addresses name."""
    experiment_id, run_id = parent.info.experiment_id, parent.info.run_id
    present = client.get_experiment(experiment_id).tags
    suites = list(dict.fromkeys(mean.suite for mean in document.suites))
    view = view_of(suites, list(dict.fromkeys(row["task"] for row in document.rows)))
    note = experiment_note(document, experiment_id, run_id)
    wanted = {**_unless_rewritten(present, {NOTE: note}), VIEW_TAG: view}
    for key, value in wanted.items():
        if present.get(key) != value:
            client.set_experiment_tag(experiment_id, key, value)


def _unless_rewritten(present: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """The tags to write: a description only where there is none, or still the one that was written here."""
    if NOTE not in tags:
        return dict(tags)
    if present.get(NOTE) and fingerprint(present[NOTE]) != present.get(NOTE_TAG):
        return {key: value for key, value in tags.items() if key != NOTE}
    return {**tags, NOTE_TAG: fingerprint(tags[NOTE])}
