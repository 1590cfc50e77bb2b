"""The tables that a run ends with: what the whole grid confirms is told from what it does not."""

import io
from dataclasses import asdict
from typing import Any

from rich.console import Console

from pipeline.results.final_tables import tables_of
from stages.compare.artifact import Numbers
from stages.report.artifact import SuiteMean, Summary, SummaryCell, TrialVerdict


def printed(document: Summary) -> list[str]:
    console = Console(file=io.StringIO(), width=250)
    for table in tables_of(document, None, 0.95):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def row(**numbers: Any) -> dict[str, Any]:
    cell = {"trial": "m/w4", "model": "m", "recipe": "w4", "is_base": False, "size_gib": 1.0, "task": "arc"}
    known = {name: value for name, value in numbers.items() if name != "is_confirmed"}
    made = SummaryCell(**cell, status="measured", metric="acc", is_confirmed=numbers.get("is_confirmed"))  # type: ignore[arg-type]
    return asdict(made) | asdict(Numbers(**known))


def test_a_cell_that_is_not_confirmed_says_so() -> None:
    rows = [row(verdict="degraded", is_confirmed=False), row(verdict="degraded", is_confirmed=True), row()]
    lines = printed(Summary(title="t", rows=rows))
    assert [line.count("not confirmed") for line in lines[1:]] == [1, 0, 0]


def test_kernels_are_named_where_some_format_had_one_and_what_they_made_of_it() -> None:
    kernels = [row(), row() | {"computed": "MarlinNvFp4 as W4A16"}, row() | {"computed": "simulated"}]
    heading, *lines = printed(Summary(title="t", rows=kernels))
    assert heading.split()[-2:] == ["computed", "by"]
    assert [line.split("1.000")[1].strip() for line in lines] == ["–", "MarlinNvFp4 as W4A16", "simulated"]
    assert "computed" not in printed(Summary(title="t", rows=[row(), row() | {"computed": "simulated"}]))[0]


def test_each_trial_has_a_line_with_what_is_decided_and_its_counts() -> None:
    counts = {
        "num_cells": 13,
        "num_equivalent": 8,
        "num_inconclusive": 1,
        "num_improved": 0,
        "num_confirmed_improved": 0,
    }
    verdict = TrialVerdict(
        trial="m/w4",
        model="m",
        recipe="w4",
        is_base=False,
        decision="not decided",
        leaning="leans to no",
        num_degraded=4,
        num_confirmed_degraded=3,
        worst_recovery=0.93,
        worst_points=-6.52,
        worst_unit="points",
        worst_task="gsm8k",
        **counts,
    )
    base = TrialVerdict(trial="m/bf16", model="m", recipe="bf16", is_base=True)
    (_, line) = printed(Summary(title="t", rows=[], trials=[base, verdict]))
    assert line.split() == [
        *("m/w4", "not", "decided,", "leans", "to", "no", "3", "+", "1?", "0", "8", "1", "gsm8k", "-6.52", "points")
    ]


def test_a_suite_s_difference_is_in_points_whatever_its_mean_is_of() -> None:
    numbers = {"difference": -0.012, "difference_low": -0.02, "difference_high": -0.004, "verdict": "degraded"}
    scaled = {name: value if isinstance(value, str) else 100 * value for name, value in numbers.items()}
    suites = [
        SuiteMean(trial="m/w4", suite="V1", mean=0.5, **numbers),  # type: ignore[arg-type]
        SuiteMean(trial="m/w4", suite="V2", mean=50.0, normalized=True, **scaled),  # type: ignore[arg-type]
    ]
    _, plain, normalized = printed(Summary(title="t", rows=[], suites=suites))
    assert "-1.20 points  [-2.00, -0.40]  degraded" in plain
    assert "-1.20 normalized points  [-2.00, -0.40]  degraded" in " ".join(normalized.split(" "))
