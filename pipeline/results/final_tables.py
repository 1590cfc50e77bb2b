"""The tables that a run ends with on a terminal: every task, suites, whether to ship each trial, what serving costs."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from rich.table import Table

from pipeline.results.console import add_row, new_table
from stages.checkpoints.kernels import SIMULATED
from stages.compare.artifact import verdict_shown
from stages.report.artifact import SuiteMean, Summary, TrialVerdict

NOTHING = "–"


def tables_of(document: Summary, points: pa.Table | None, confidence: float) -> Iterator[Table]:
    """Those that have rows."""
    interval = f"{100 * confidence:g} % interval"
    if document.rows:
        yield _tasks_table(document.rows, interval)
    if document.suites:
        yield _suites_table(document.suites, interval)
    if judged := [each for each in document.trials if not each.is_base]:
        yield _verdicts_table(judged)
    if points is not None:
        yield _serving_table(points.to_pylist())


def _tasks_table(rows: Sequence[Mapping[str, object]], interval: str) -> Table:
    """With the kernels of each, where some format had one of its own."""
    has_kernels = any(row["computed"] not in (None, SIMULATED) for row in rows)
    headings = ["trial", "task", "n", "score", interval, "recovery", "difference", interval]
    table = new_table(*headings, "lost/won", "verdict", "GiB", *["computed by"] * has_kernels)
    for row in rows:
        add_row(table, [*_summary_cells(row), *[str(row["computed"] or NOTHING)] * has_kernels])
    return table


def _suites_table(suites: Sequence[SuiteMean], interval: str) -> Table:
    table = new_table("trial", "suite", "mean", "recovery", interval, "difference", interval, "verdict")
    for suite in suites:
        scale, places = ("normalized points", 1.0) if suite.normalized else ("points", 100.0)
        difference, low, high = (
            None if each is None else places * each
            for each in (suite.difference, suite.difference_low, suite.difference_high)
        )
        cells = [
            suite.trial,
            suite.suite,
            _number(suite.mean, "{:.2f} of 100" if suite.normalized else "{:.4f}"),
            _number(suite.recovery, "{:.2%}"),
            _interval(suite.recovery_low, suite.recovery_high, "{:.2%}"),
            _number(difference, f"{{:+.2f}} {scale}"),
            _interval(low, high, "{:+.2f}"),
            suite.verdict or NOTHING,
        ]
        add_row(table, cells)
    return table


def _verdicts_table(verdicts: Sequence[TrialVerdict]) -> Table:
    """Whether to ship each trial; of degraded and improved tasks those that the whole grid confirms, and the others."""
    table = new_table(
        "trial", "ship it?", "degraded", "improved", "equivalent", "inconclusive", "worst task", "lost or won"
    )
    for each in verdicts:
        cells = [
            each.trial,
            each.decided or NOTHING,
            _confirmed(each.num_confirmed_degraded, each.num_degraded),
            _confirmed(each.num_confirmed_improved, each.num_improved),
            *(_number(number, "{:d}") for number in (each.num_equivalent, each.num_inconclusive)),
            each.worst_task or NOTHING,
            NOTHING if each.worst_points is None else f"{each.worst_points:+.2f} {each.worst_unit or ''}".strip(),
        ]
        add_row(table, cells)
    return table


def _confirmed(confirmed: int | None, by_itself: int | None) -> str:
    if confirmed is None or by_itself is None:
        return NOTHING
    return f"{confirmed} + {by_itself - confirmed}?" if by_itself > confirmed else str(confirmed)


def _serving_table(points: Sequence[Mapping[str, object]]) -> Table:
    table = new_table(
        "trial", "workload", "mode", "requests/s", "latency s", "first token ms", "queries/$", "starts", "valid"
    )
    for point in points:
        cells = [
            *(str(point[name]) for name in ("trial", "workload", "mode")),
            *(_number(point[name], "{:.3g}") for name in ("requests_per_s", "latency_s_median", "ttft_ms_median")),
            _number(point["queries_per_usd"], "{:,.0f}"),
            _number(point["num_starts"], "{:d}"),
            "yes" if point["is_valid"] else "no: the report says why",
        ]
        add_row(table, cells)
    return table


def _summary_cells(row: Mapping[str, object]) -> list[str]:
    return [
        str(row["trial"]),
        str(row["task"]),
        _number(row["n"], "{:d}") + _number(row["num_clusters"], " in {:d}", nothing=""),
        _number(row["score"], "{:.4f}"),
        _interval(row["score_low"], row["score_high"], "{:.4f}"),
        _number(row["recovery"], "{:.2%}"),
        _number(row["difference"], "{:+.4f}"),
        _interval(row["difference_low"], row["difference_high"], "{:+.4f}"),
        _flips(row),
        _verdict(row) or NOTHING,
        _number(row["size_gib"], "{:.3f}"),
    ]


def _verdict(row: Mapping[str, object]) -> str | None:
    return f"{verdict_shown(row)}, not confirmed" if row["is_confirmed"] is False else verdict_shown(row)


def _flips(row: Mapping[str, object]) -> str:
    lost, won = row["num_base_only_right"], row["num_trial_only_right"]
    return NOTHING if lost is None or won is None else f"{lost}/{won}"


def _number(value: object, pattern: str, nothing: str = NOTHING) -> str:
    return nothing if value is None else pattern.format(value)


def _interval(low: object, high: object, pattern: str) -> str:
    return NOTHING if low is None or high is None else f"[{pattern.format(low)}, {pattern.format(high)}]"
