"""What a comparison writes: numbers by leaf and metric, and the whole task's in short.

A number is one field of Numbers; tables, documents and the report's summary have it from there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.documents import plain_columns, read_json, read_table, write_json, write_table

TABLE, FACTS, FLIPS, INFLUENCES = "comparison.parquet", "comparison.json", "flips.parquet", "influences.parquet"
LOST, WON = "lost", "won"  # of a document that the trial answers otherwise than its base
_FLIPS_AT_ONCE = 200  # the first are read without the rest
# Of a document of the whole task: the beginnings of its digest and of that of its declared cluster (null: it stands for
# itself), and what it adds to the difference and to the base's score.
INFLUENCE_COLUMNS = ("document", "cluster", "difference", "base", "normalized_difference", "normalized_base")


def _normalized(raw: str) -> Any:
    return field(default=None, metadata={"raw": raw})


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What a row is of; ``leaf`` is None in those of the whole task."""

    task: str
    leaf: str | None
    metric: str | None
    primary: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """What is known of one metric of a leaf or of the whole task; None is what could not be measured."""

    higher_is_better: bool | None = None
    aggregation: str | None = None
    n: int | None = None  # documents the trial was scored on
    num_missing: int | None = None
    num_truncated: int | None = None
    num_cut: int | None = None  # documents of which an answer ended at the limit of its tokens
    num_cut_in_thoughts: int | None = None
    num_stopped: int | None = None  # of a chat model: at a stop string
    num_thinking: int | None = None  # with thoughts before the answer; None where none are looked for
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    interval: str | None = None  # how those of score and difference are made: a word of design.py
    is_right_or_wrong: bool | None = None  # each document, as the metric is declared
    num_clusters: int | None = None  # of documents that belong together; None where each stands for itself
    design_effect: float | None = (
        None  # how much more a score of clusters varies; of the difference, where there is one
    )
    finished_score: float | None = None  # of documents that are not cut
    base_n: int | None = None
    base_num_missing: int | None = None
    base_num_cut: int | None = None
    base_num_cut_in_thoughts: int | None = None
    base_num_stopped: int | None = None
    base_num_thinking: int | None = None
    base_score: float | None = None
    base_finished_score: float | None = None
    num_pairs: int | None = None  # documents both were scored on; all that follows is of these alone
    paired_score: float | None = None
    paired_base_score: float | None = None
    recovery: float | None = None  # trial over base, or base over trial where lower is better
    recovery_low: float | None = None
    recovery_high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    difference_p: float | None = None  # of the statistic that the interval is made of
    worst_difference_low: float | None = None  # of the interval, if all that is missing had gone against the trial
    num_base_only_right: int | None = None
    num_trial_only_right: int | None = None
    num_changed: int | None = None  # documents of another score than the base's
    mcnemar_p: float | None = None  # exact
    mcnemar_mid_p: float | None = None
    # The same checkpoint evaluated twice, on the documents of both; then the share of the base's that the trial changed
    # less that of those that the base changed itself.
    rerun_n: int | None = None
    rerun_num_changed: int | None = None
    rerun_difference: float | None = None  # from the first to the second run
    rerun_difference_low: float | None = None
    rerun_difference_high: float | None = None
    rerun_difference_p: float | None = None
    base_rerun_n: int | None = None
    base_rerun_num_changed: int | None = None
    base_rerun_difference: float | None = None
    base_rerun_difference_low: float | None = None
    base_rerun_difference_high: float | None = None
    base_rerun_difference_p: float | None = None
    excess_flips: float | None = None
    excess_flips_low: float | None = None
    excess_flips_high: float | None = None
    excess_flips_p: float | None = None
    margin: float | None = None  # of the difference that the verdict is of, see is_verdict_normalized
    wide_margin: float | None = None
    detectable_difference: float | None = None  # so large a true one would have been seen four times of five
    is_verdict_normalized: bool | None = None  # margins and detectable difference; of leaves with unlike baselines
    verdict_p: float | None = None  # that the difference which the verdict is of is 0
    wide_margin_p: float | None = None  # one-sided, that the loss is the wide margin or more: all missing against it
    verdict: str | None = None  # a word of verdict.py
    reason: str | None = None  # beyond margin, or why it is inconclusive
    num_needed: int | None = None  # documents that would decide what is inconclusive
    normalized_unfloored: float | None = None  # what normalized would be, did it not end at 0 for guessing
    # On a scale of 0 for guessing to 100 for perfect; None where the task declares no baseline.
    normalized: float | None = _normalized("score")
    normalized_low: float | None = _normalized("score_low")
    normalized_high: float | None = _normalized("score_high")
    base_normalized: float | None = _normalized("base_score")
    paired_normalized: float | None = _normalized("paired_score")
    paired_base_normalized: float | None = _normalized("paired_base_score")
    normalized_recovery: float | None = _normalized("recovery")
    normalized_recovery_low: float | None = _normalized("recovery_low")
    normalized_recovery_high: float | None = _normalized("recovery_high")
    normalized_difference: float | None = _normalized("difference")
    normalized_difference_low: float | None = _normalized("difference_low")
    normalized_difference_high: float | None = _normalized("difference_high")


# A normalized number's name, and that of the raw one that it answers to.
NORMALIZED: Mapping[str, str] = {each.name: each.metadata["raw"] for each in fields(Numbers) if each.metadata}
SCHEMA = pa.schema(plain_columns(Labels) | plain_columns(Numbers))
NUMBERS = [each.name for each in SCHEMA if each.type in (pa.int64(), pa.float64())]
FLIPS_SCHEMA = pa.schema(
    {
        "leaf": pa.string(),
        "doc_id": pa.int64(),
        "metric": pa.string(),
        "change": pa.string(),
        "base_score": pa.float64(),
        "trial_score": pa.float64(),
        "question": pa.string(),
        "choices": pa.list_(pa.string()),
        "target": pa.string(),
        "base_answers": pa.list_(pa.string()),
        "trial_answers": pa.list_(pa.string()),
        "base_extracted": pa.string(),  # what the metric's filter made of the answers, where that is another text
        "trial_extracted": pa.string(),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafFacts:
    """How one leaf of the trial was evaluated; ``comparable`` is what must be equal to be compared."""

    num_documents: int
    version: Any
    num_docs: int
    comparable: dict[str, Any]
    arithmetic: dict[str, Any] | None = None  # as in the evaluation's TaskFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Error:
    """Variances of the difference and of the base on the pairs, and their covariance: what a mean of tasks adds up.

    ``freedom`` is of Student's distribution (None: the normal's); ``worst_loss`` is how much worse the difference were
    if all that is missing had gone against the trial (None where nobody knows), and ``reason`` why nothing can be said
    of it.
    """

    difference: float
    base: float
    covariance: float
    freedom: float | None = None
    worst_loss: float | None = 0.0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Of the whole task's primary metric, as it is and on the normalized scale; None where it has none."""

    raw: Error | None = None
    normalized: Error | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonFacts:
    """The whole task's primary metric, and how it was obtained; ``metric`` is None where leaves report different ones.

    ``leaves`` holds None for those without results.
    """

    task: str
    metric: str | None
    metrics: list[str]
    weight_by_size: bool
    random_baseline: float | None = None
    leaf_baselines: dict[str, float] = field(default_factory=dict)
    confidence: float
    headline: Numbers
    verdict_rule: str = ""
    errors: Errors = Errors()
    notes: list[str]
    leaves: dict[str, LeafFacts | None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published comparison."""

    directory: Path
    facts: ComparisonFacts


def verdict_shown(row: Mapping[str, Any]) -> str | None:
    """The verdict of a row with what is to be known of it, for tables."""
    needed = row["num_needed"]
    more = [each for each in (row["reason"], None if needed is None else f"own margin needs {needed:,}") if each]
    return f"{row['verdict']} ({', '.join(more)})" if more else row["verdict"]


def write_comparison(
    out: Path, rows: Iterable[Mapping[str, Any]], facts: ComparisonFacts, influences: pa.Table | None = None
) -> None:
    """``rows`` have the columns of SCHEMA; absent ones are null."""
    write_table(out / TABLE, pa.Table.from_pylist(list(rows), schema=SCHEMA))
    write_json(out / FACTS, asdict(facts))
    if influences is not None:
        write_table(out / INFLUENCES, influences)


def read_comparison(directory: Path) -> Comparison:
    """What is known of the whole task."""
    return Comparison(directory, read_json(directory / FACTS, ComparisonFacts))


def read_influences(directory: Path) -> pa.Table | None:
    """Of each document that trial and base were scored on, as INFLUENCE_COLUMNS say; one that stands for itself is a
    cluster of its own.  None of a base, and of older comparisons.
    """
    if not (directory / INFLUENCES).exists():
        return None
    table = read_table(directory / INFLUENCES, INFLUENCE_COLUMNS)
    return table.set_column(1, "cluster", pc.coalesce(table["cluster"], table["document"]))


def read_rows(directory: Path) -> pa.Table:
    """A row for each leaf and metric, and those of the whole task, as SCHEMA says."""
    return read_table(directory / TABLE)


def write_flips(out: Path, flips: pa.Table) -> None:
    """Rows of FLIPS_SCHEMA, those first that a reader shall see first."""
    import pyarrow.parquet as pq

    pq.write_table(flips, out / FLIPS, compression="zstd", row_group_size=_FLIPS_AT_ONCE)


def read_flips(directory: Path, most: int | None = None) -> tuple[pa.Table, int]:
    """The first of the documents that a trial answers otherwise, or all of them, and how many there are."""
    import pyarrow.parquet as pq

    if not (directory / FLIPS).exists():  # a comparison from before there were any
        return FLIPS_SCHEMA.empty_table(), 0
    with pq.ParquetFile(directory / FLIPS) as file:
        total = file.metadata.num_rows
        num_groups = -(-min(total if most is None else most, total) // _FLIPS_AT_ONCE)
        return file.read_row_groups(list(range(num_groups)), use_threads=False).slice(0, most), total
