"""What README says was measured is what the files beside the benchmarks say."""

import json
from pathlib import Path

from tests.benchmarks import grid, profile
from tests.benchmarks.evaluation import RECIPES

README = (Path(__file__).parents[1] / "README.md").read_text()
BENCHMARKS = Path(profile.__file__).parent


def test_the_table_of_serving_costs_is_that_of_the_measured_points():
    assert profile.table(BENCHMARKS / "profile_h100.parquet") in README


def test_the_table_of_the_engine_s_own_cost_is_that_of_the_measured_runs():
    assert grid.table(BENCHMARKS / "grid.json", BENCHMARKS / "grid_large.json") in README


def test_the_row_of_the_six_tasks_is_what_was_measured():
    found = json.loads((BENCHMARKS / "evaluation.json").read_text())
    theirs = ", ".join(f"{seconds:.0f}" for seconds in found["theirs_s"].values())
    ours = found["ours_s"] / len(RECIPES)
    (row,) = [line for line in README.splitlines() if line.startswith("| six tasks")]
    assert f"{found['num_documents']:,} documents" in row
    assert row.endswith(f"| {theirs} s | {ours:.0f} s | {found['ratio']:.1f} |")
    assert found["other_scores"] == {}, "README says that all scores were equal"
