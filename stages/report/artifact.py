"""What a report writes: pages, the summary as a table and as a document, suites, and what serving costs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.compare.artifact import Numbers
from stages.documents import plain_columns, read_json, read_table, write_json, write_table
from stages.report.numbers import number

MARKDOWN, HTML = "report.md", "report.html"
VERDICTS = "verdicts.md"  # its beginning: the sentences and the table of verdicts, a line for each trial
SUMMARY, SUMMARY_DOCUMENT, SERVING = "summary.parquet", "summary.json", "serving.parquet"

MOST_SENTENCES = 6  # models whose sentence is said at once; the others' are where somebody asks for them
MOST_FLIPS, FEWEST_FLIPS, MOST_FLIPS_IN_ALL = 200, 20, 30_000  # documents answered otherwise; some 1.5 kB each

Row = dict[str, Any]  # of the summary, by the columns of SUMMARY_SCHEMA


@dataclass(frozen=True, slots=True)
class Points:
    """What differences are said in: ``scale`` times one is in points of the scale from guessing to perfect (of the
    plain score without a baseline), in per cent of the base's where lower is better, or in the metric's own unit.
    """

    scale: float = 100.0
    name: str = "points"

    def of(self, value: float) -> str:
        """Its size."""
        size = abs(self.scale * value)
        return f"{number(size, 2)} {self.name}" if self.name else f"{size:.3g}"

    def limit(self, value: float) -> str:
        """A size that somebody has set."""
        size = f"{abs(self.scale * value):.3g}"
        return f"{size} {'point' if (size, self.name) == ('1', 'points') else self.name}".strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryCell:
    """A trial and a task; the numbers beside it are those of the comparison's whole task."""

    trial: str
    model: str
    recipe: str
    is_base: bool
    size_gib: float | None
    task: str
    status: str  # measured, incomplete (compared, but without a score), failed, skipped, missing
    metric: str | None
    note: str | None = None  # what a reader must know before the score: what is missing, cut, or ended early
    computed: str | None = None  # the kernels of its format, and what they make of it; None where it has none
    adjusted_p: float | None = None  # of the difference among all cells of the sweep as planned
    is_confirmed: bool | None = None  # whether it confirms a degraded or improved cell; None of any other
    quantized: str | None = None  # of somebody else's checkpoint: what is quantized, and how


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteMean:
    """A trial and a suite; ``mean`` is of scores, or of normalized scores, up to 100."""

    trial: str
    suite: str
    normalized: bool = False
    mean: float | None
    base_mean: float | None = None
    recovery: float | None = None
    recovery_low: float | None = None
    recovery_high: float | None = None
    difference: float | None = None  # of the means on the pairs, in the unit of the mean
    difference_low: float | None = None
    difference_high: float | None = None
    margin: float | None = None
    verdict: str | None = None  # a word of stages/compare/verdict.py
    reason: str | None = None


DECISIONS = ("ship", "do not ship", "not decided")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialVerdict:
    """Whether a trial may be shipped, and what was shown, speaks against it or is missing to say so, a line each.

    Counts are of its tasks; a base has neither a decision nor counts of verdicts.  ``leaning`` is of what is not
    decided, a word of ``stages/grid/shipping.py``; None where nothing was measured that says so.
    """

    trial: str
    model: str
    recipe: str
    is_base: bool
    decision: str | None = None  # one of DECISIONS
    leaning: str | None = None
    reasons: list[str] = field(default_factory=list)
    p: float | None = None  # that some part of what is asked of a format that is shipped does not hold
    adjusted_p: float | None = None  # among the trials of which one is chosen
    num_cells: int = 0
    num_equivalent: int | None = None
    num_inconclusive: int | None = None
    num_degraded: int | None = None
    num_confirmed_degraded: int | None = None
    num_improved: int | None = None
    num_confirmed_improved: int | None = None
    worst_recovery: float | None = None
    worst_points: float | None = None  # by how much it is better than the base there, in Points
    worst_unit: str | None = None
    worst_task: str | None = None

    @property
    def decided(self) -> str | None:
        """The decision, with its leaning behind it."""
        return self.decision if self.leaning is None else f"{self.decision}, {self.leaning}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The summary as a document; ``headline`` counts what may be shipped, ``sentences``, by model, say what to ship.

    ``trials`` are in the order in which they are read, not in the sweep's.
    """

    title: str
    rows: list[Row]
    suites: list[SuiteMean] = field(default_factory=list)
    trials: list[TrialVerdict] = field(default_factory=list)
    sentences: dict[str, str] = field(default_factory=dict)
    headline: str = ""


SUMMARY_SCHEMA = pa.schema(plain_columns(SummaryCell) | plain_columns(Numbers))
SUITES_SCHEMA = pa.schema(plain_columns(SuiteMean))
DECISIONS_SCHEMA = pa.schema(plain_columns(TrialVerdict))

# low and high: of the median over starts; of p90 and p99 over starts, too, of one start over its requests.
QUANTILES = ("median", "low", "high", "p90", "p90_low", "p90_high", "p99", "p99_low", "p99_high")
_DISTRIBUTIONS = [f"{name}_{quantile}" for name in ("latency_s", "ttft_ms", "itl_ms") for quantile in QUANTILES]
_SERVING = {
    pa.string(): ["trial", "model", "recipe", "device", "workload", "mode"],
    pa.int64(): [
        *("prompt_tokens", "output_tokens", "num_gpus", "concurrency"),
        *("sm_clock_mhz", "temperature_c"),  # of the first GPU, at the end
    ],
    pa.float64(): [
        *("usd_per_hour", "requests_per_s", "requests_per_s_low", "requests_per_s_high", "direct_requests_per_s"),
        "client_requests_per_s",
        *_DISTRIBUTIONS,
        *("queries_per_usd", "roofline_share", "spread"),
    ],
    pa.bool_(): ["is_valid"],
    pa.list_(pa.string()): ["reasons"],
}
_COUNTS = ["num_requests", "num_failed", "num_warm_up", "num_starts"]
SERVING_SCHEMA = pa.schema(
    [*((name, kind) for kind, names in _SERVING.items() for name in names), *((name, pa.int64()) for name in _COUNTS)]
)


def write_summary(out: Path, summary: Summary) -> None:
    """Its rows as a table, and all of it as a document."""
    write_table(out / SUMMARY, pa.Table.from_pylist(summary.rows, schema=SUMMARY_SCHEMA))
    write_json(out / SUMMARY_DOCUMENT, asdict(summary))


def read_summary(directory: Path) -> pa.Table:
    """A row for each trial and task, as SUMMARY_SCHEMA says; null in columns that are newer than the report."""
    return _with_columns(read_table(directory / SUMMARY), SUMMARY_SCHEMA)


def read_suites(directory: Path) -> pa.Table:
    """A row for each trial and suite, as SUITES_SCHEMA says."""
    suites = read_json(directory / SUMMARY_DOCUMENT, Summary).suites
    return pa.Table.from_pylist([asdict(suite) for suite in suites], schema=SUITES_SCHEMA)


def read_decisions(directory: Path) -> pa.Table:
    """A row for each trial, as DECISIONS_SCHEMA says; none in a report from before there were any."""
    trials = read_json(directory / SUMMARY_DOCUMENT, Summary).trials
    return pa.Table.from_pylist([asdict(trial) for trial in trials], schema=DECISIONS_SCHEMA)


def read_document(directory: Path) -> Summary:
    """All of the summary; lists are empty in a report from before there were any."""
    return read_json(directory / SUMMARY_DOCUMENT, Summary)


def most_flips(num_cells: int) -> int:
    """How many documents of a trial and task are shown: a large sweep shows fewer of each."""
    return max(min(MOST_FLIPS, MOST_FLIPS_IN_ALL // max(num_cells, 1)), FEWEST_FLIPS)


def write_serving(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row for each point."""
    write_table(out / SERVING, pa.Table.from_pylist(list(rows), schema=SERVING_SCHEMA))


def read_serving(directory: Path) -> pa.Table | None:
    """A row for each trial, workload and mode, as SERVING_SCHEMA says, null in columns that are newer than the report.

    None if nothing was served.
    """
    path = directory / SERVING
    return _with_columns(read_table(path), SERVING_SCHEMA) if path.exists() else None


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for column in schema:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    return table


def points_of(row: Row) -> Points:
    """What a cell's differences are said in, from the scale that its verdict is of, so that tasks compare."""
    if row.get("higher_is_better") is False:
        base = abs(float(row.get("paired_base_score") or 0.0))
        return Points(100 / base, "% of the base's score") if base else Points(1.0, "")
    if row.get("is_verdict_normalized"):
        return Points(1.0)
    pairs = [
        (row.get(name), row.get(f"normalized_{name}")) for name in ("difference_low", "difference", "difference_high")
    ]
    known = [(plain, scaled) for plain, scaled in pairs if plain is not None and scaled is not None]
    if not known or known[0][0] == known[-1][0]:
        return Points()
    (low, scaled_low), (high, scaled_high) = known[0], known[-1]
    return Points((scaled_high - scaled_low) / (high - low))
