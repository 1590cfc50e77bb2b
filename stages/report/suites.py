"""A suite's means in a report: one for each trial, with its difference from the base, interval and verdict."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.compare.artifact import Comparison, read_influences
from stages.compare.verdict import INCONCLUSIVE
from stages.grid.joint import Influences, Member
from stages.grid.suites import MeanDifference, mean_difference
from stages.report.artifact import Row, SuiteMean
from stages.report.config import SuiteRow, TrialRow
from stages.report.rows import Comparisons, arithmetic_of
from stages.statistics import recovery_of

_COLUMNS = {False: ("difference", "base"), True: ("normalized_difference", "normalized_base")}
Found = tuple[SuiteMean, MeanDifference | None]


def suite_means(
    trials: Sequence[TrialRow],
    suites: Sequence[SuiteRow],
    rows: Sequence[Row],
    comparisons: Comparisons,
    data: Mapping[str, Sequence[str]],
) -> Iterator[Found]:
    """Plain means of the suites' tasks, with their differences and recoveries; None if a member is missing or of
    another arithmetic.

    Differences and recoveries are of the documents that both trials were scored on, as their intervals are; the means
    are of all.  Tasks where higher is better have no mean with those where lower is.
    """
    by_cell = {(row["trial"], row["task"]): row for row in rows}
    for trial in trials:
        tasks = dict.fromkeys(task for suite in suites if len(suite.tasks) > 1 for task in suite.tasks)
        compared = {task: comparisons[trial.name, task] for task in tasks if (trial.name, task) in comparisons}
        documents = _Documents({task: comparison.directory for task, comparison in compared.items()}, data)
        for suite in suites:
            cells = {task: by_cell.get((trial.name, task), {}) for task in suite.tasks}
            of_suite = {task: comparisons.get((trial.name, task)) for task in suite.tasks}
            yield _suite_mean(trial, suite, cells, of_suite, documents)


def _suite_mean(
    trial: TrialRow,
    suite: SuiteRow,
    cells: Mapping[str, Row],
    compared: Mapping[str, Comparison | None],
    documents: "_Documents",
) -> Found:
    columns = ("normalized", "base_normalized") if suite.normalized else ("score", "base_score")
    mixed = _why_mixed(cells, compared)
    known = [] if mixed else list(cells.values())
    lower_is_better = any(cell.get("higher_is_better") is False for cell in known)
    mean, base_mean = (_mean([cell.get(name) for cell in known]) for name in columns)
    paired, paired_base = (_mean([cell.get(f"paired_{name}") for cell in known]) for name in columns)
    found, reason = (
        (None, mixed) if mixed or trial.is_base else _difference(suite, cells, compared, documents, lower_is_better)
    )
    confidence = confidence_of(list(compared.values()))
    margin = None if trial.is_base else _margin(suite, cells, lower_is_better)
    recovery = recovery_of(paired, paired_base, lower_is_better)
    low, high = (None, None) if found is None else found.interval(confidence)
    shares = (None, None) if found is None else found.recovery_interval(confidence)
    verdict = None if trial.is_base or mean is None else INCONCLUSIVE
    if found is not None and margin is not None:
        verdict, reason = found.judged(margin, confidence)
    return SuiteMean(
        trial=trial.name,
        suite=suite.name,
        normalized=suite.normalized,
        mean=mean,
        base_mean=base_mean,
        recovery=recovery,
        recovery_low=None if recovery is None else shares[0],
        recovery_high=None if recovery is None else shares[1],
        difference=None if paired is None or paired_base is None else paired - paired_base,
        difference_low=low,
        difference_high=high,
        margin=margin,
        verdict=verdict,
        reason=reason,
    ), found


def suite_notes(found: Sequence[Found]) -> Iterator[str]:
    """Which tasks' errors were added up without knowing how they hang together."""
    for mean, difference in found:
        for one, other in () if difference is None else difference.unknown:
            yield (
                f"{mean.suite}: {one} and {other} are taken as wholly correlated: which documents they share is not "
                "known"
            )


def confidence_of(compared: Sequence[Comparison | None]) -> float:
    """The lowest of those that are put together."""
    return min((each.facts.confidence for each in compared if each is not None), default=0.95)


def _why_mixed(cells: Mapping[str, Row], compared: Mapping[str, Comparison | None]) -> str | None:
    """Why scores that are all there have no mean."""
    if len({cell.get("higher_is_better") is False for cell in cells.values() if cell}) > 1:
        return "lower is better in some of its tasks only"
    if len({arithmetic_of(each) for each in compared.values()} - {None}) > 1:
        return "its tasks were not all computed alike"
    return None


def _difference(
    suite: SuiteRow,
    cells: Mapping[str, Row],
    compared: Mapping[str, Comparison | None],
    documents: "_Documents",
    lower_is_better: bool,
) -> tuple[MeanDifference | None, str | None]:
    """Or why there is none."""
    name = "normalized" if suite.normalized else "score"
    members = []
    for task, cell in cells.items():
        comparison, paired, base = compared[task], cell.get(f"paired_{name}"), cell.get(f"paired_base_{name}")
        errors = None if comparison is None else comparison.facts.errors
        error = None if errors is None else errors.normalized if suite.normalized else errors.raw
        if paired is None or base is None:
            return None, f"{task} has no difference from the base"
        if error is None:
            return None, f"{task} has no interval"
        known = documents.influences(task, suite.normalized), documents.sources(task)
        members.append(
            Member(task=task, difference=paired - base, base=base, error=error, influences=known[0], sources=known[1])
        )
    return mean_difference(members, lower_is_better), None


def _margin(suite: SuiteRow, cells: Mapping[str, Row], lower_is_better: bool) -> float | None:
    """Points of the mean's scale; where lower is better the mean of its tasks' own margins."""
    if lower_is_better:
        return _mean([cell.get("margin") for cell in cells.values()])
    return suite.points if suite.normalized else suite.points / 100


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known and len(known) == len(scores) else None


class _Documents:
    """What the documents of a trial's tasks add to their differences, under one numbering."""

    def __init__(self, directories: Mapping[str, Path], data: Mapping[str, Sequence[str]]) -> None:
        self._data = data
        read = {task: read_influences(directory) for task, directory in directories.items()}
        self._tables = {task: table for task, table in read.items() if table is not None}
        names = [
            chunk
            for table in self._tables.values()
            for column in ("document", "cluster")
            for chunk in table[column].chunks
        ]
        codes = pa.chunked_array(names, pa.string()).combine_chunks().dictionary_encode().indices.to_numpy()
        sizes = [table.num_rows for table in self._tables.values() for _ in range(2)]
        parts = np.split(codes.astype(np.int64), np.cumsum(sizes)[:-1])
        self._codes = dict(zip(self._tables, zip(parts[::2], parts[1::2], strict=True), strict=True)) if sizes else {}

    def sources(self, task: str) -> frozenset[str]:
        """The data sets that a task reads."""
        return frozenset(self._data.get(task, ()))

    def influences(self, task: str, is_normalized: bool) -> Influences | None:
        """Of a task; None where its comparison says nothing of its documents."""
        if task not in self._codes:
            return None
        columns = [self._tables[task][name].to_numpy() for name in _COLUMNS[is_normalized]]
        return Influences(*self._codes[task], np.column_stack(columns))
