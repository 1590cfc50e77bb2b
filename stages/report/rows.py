"""What a report is about: one summary row for each trial and task, and one for each trial and suite."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.compare.rows import NORMALIZED
from stages.errors import DataError
from stages.report.config import FailureRow, SuiteRow, TrialRow
from stages.statistics import NO_INTERVAL, Floats, Interval, percentile_interval, recovery_draws, recovery_of

Row = dict[str, Any]

_TEXT, _COUNT, _SCORE = pa.string(), pa.int64(), pa.float64()

SUMMARY_SCHEMA = pa.schema(
    [
        ("trial", _TEXT),
        ("model", _TEXT),
        ("recipe", _TEXT),
        ("is_base", pa.bool_()),
        ("size_gib", _SCORE),
        ("task", _TEXT),
        ("status", _TEXT),  # measured, incomplete (compared, but without a score), failed, skipped, missing
        ("metric", _TEXT),
        ("higher_is_better", pa.bool_()),
        ("aggregation", _TEXT),
        ("n", _COUNT),
        ("num_missing", _COUNT),
        ("num_truncated", _COUNT),
        ("score", _SCORE),
        ("score_low", _SCORE),
        ("score_high", _SCORE),
        ("interval", _TEXT),
        ("base_score", _SCORE),
        ("num_pairs", _COUNT),
        ("paired_score", _SCORE),
        ("paired_base_score", _SCORE),
        ("recovery", _SCORE),
        ("recovery_low", _SCORE),
        ("recovery_high", _SCORE),
        ("difference", _SCORE),
        ("difference_low", _SCORE),
        ("difference_high", _SCORE),
        ("num_base_only_right", _COUNT),
        ("num_trial_only_right", _COUNT),
        ("mcnemar_p", _SCORE),
        ("verdict", _TEXT),
        *((name, _SCORE) for name in NORMALIZED),  # null where the task declares no baseline
    ]
)

SUITES_SCHEMA = pa.schema(
    [
        ("trial", _TEXT),
        ("suite", _TEXT),
        ("normalized", pa.bool_()),
        ("mean", _SCORE),  # of scores, or of normalized scores, up to 100
        ("base_mean", _SCORE),
        ("recovery", _SCORE),
        ("recovery_low", _SCORE),
        ("recovery_high", _SCORE),
    ]
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published comparison: its directory, and its ``comparison.json``."""

    path: Path
    document: Mapping[str, Any]

    def draws(self, columns: Sequence[str]) -> Floats | None:
        """The whole task's bootstrap draws (R, C); None where it has none."""
        try:
            table = pq.read_table(self.path / "draws.parquet")
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{self.path.name}: draws.parquet cannot be read ({reason}); delete it and run again"
            ) from error
        if not set(columns) <= set(table.column_names):
            return None
        return np.column_stack([table[name].to_numpy().astype(float) for name in columns])


def read_comparisons(
    trials: Sequence[TrialRow], tasks: Sequence[str], inputs: Mapping[str, Path]
) -> dict[tuple[str, str], Comparison]:
    """The comparisons among ``inputs`` (``compare/<trial>/<task>``), by trial and task."""
    found = {}
    for trial in trials:
        for task in tasks:
            path = inputs.get(f"compare/{trial.name}/{task}")
            if path is not None:
                found[trial.name, task] = Comparison(path, read_json(path / "comparison.json"))
    return found


def read_json(path: Path) -> Any:
    """The document at ``path``; raises DataError if it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path.parent.name}: {path.name} cannot be read ({error}); delete it and run again") from error


def summary_rows(
    trials: Sequence[TrialRow],
    tasks: Sequence[str],
    failures: Sequence[FailureRow],
    comparisons: Mapping[tuple[str, str], Comparison],
) -> Iterator[Row]:
    """A row of SUMMARY_SCHEMA for every trial and task, measured or not."""
    for trial in trials:
        for task in tasks:
            comparison = comparisons.get((trial.name, task))
            headline = comparison.document["headline"] if comparison else {}
            yield {name: headline.get(name) for name in SUMMARY_SCHEMA.names} | {
                "trial": trial.name,
                "model": trial.model,
                "recipe": trial.recipe,
                "is_base": trial.is_base,
                "size_gib": trial.size_gib,
                "task": task,
                "metric": comparison.document["metric"] if comparison else None,
                "status": _status(trial.name, task, headline, failures),
            }


def suite_rows(
    trials: Sequence[TrialRow],
    suites: Sequence[SuiteRow],
    rows: Sequence[Row],
    comparisons: Mapping[tuple[str, str], Comparison],
) -> Iterator[Row]:
    """Rows of SUITES_SCHEMA: plain means of the suites' tasks, and their recoveries; null if a member is missing.

    A recovery is of the documents that both trials were scored on, as its interval is; the means are of all.  Tasks
    where higher is better have no mean with those where lower is.
    """
    by_cell = {(row["trial"], row["task"]): row for row in rows}
    for trial in trials:
        for suite in suites:
            cells = [by_cell.get((trial.name, task), {}) for task in suite.tasks]
            directions = {cell.get("higher_is_better") is False for cell in cells if cell}
            if len(directions) > 1:
                cells = [{}]
            lower_is_better = directions == {True}
            columns = ("normalized", "base_normalized") if suite.normalized else ("score", "base_score")
            mean, base_mean = (_mean([cell.get(name) for cell in cells]) for name in columns)
            paired, paired_base = (_mean([cell.get(f"paired_{name}") for cell in cells]) for name in columns)
            compared = [comparisons.get((trial.name, task)) for task in suite.tasks]
            recovery = recovery_of(paired, paired_base, lower_is_better)
            low, high = NO_INTERVAL if recovery is None else _recovery_interval(compared, columns, lower_is_better)
            yield {
                "trial": trial.name,
                "suite": suite.name,
                "normalized": suite.normalized,
                "mean": mean,
                "base_mean": base_mean,
                "recovery": recovery,
                "recovery_low": low,
                "recovery_high": high,
            }


def _recovery_interval(
    compared: Sequence[Comparison | None], columns: Sequence[str], lower_is_better: bool
) -> Interval:
    """Of the ratio of means over tasks, each resampled within itself: a suite's composition is fixed and not drawn."""
    known = [comparison for comparison in compared if comparison is not None]
    draws = [found for comparison in known if (found := comparison.draws(columns)) is not None]
    if not draws or len(draws) < len(compared):
        return NO_INTERVAL
    num_resamples = min(map(len, draws))
    total = np.sum([found[:num_resamples] for found in draws], axis=0)
    confidence = min(comparison.document["confidence"] for comparison in known)
    return percentile_interval(recovery_draws(total, lower_is_better), confidence)


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known and len(known) == len(scores) else None


def _status(trial: str, task: str, headline: Row, failures: Sequence[FailureRow]) -> str:
    if headline:
        return "measured" if headline["score"] is not None else "incomplete"
    statuses = {failure.status for failure in failures if failure.trial == trial and failure.task in (task, None)}
    return next((status for status in ("failed", "skipped") if status in statuses), "missing")
