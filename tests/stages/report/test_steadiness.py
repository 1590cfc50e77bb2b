"""Engines that differ from themselves leave their cells open; those that only vary do not."""

import json

import pytest

from stages.compare.config import CompareConfig
from stages.compare.stage import compare
from stages.report.artifact import read_document
from stages.report.config import ReportConfig, SuiteRow, TrialRow
from stages.report.stage import report

TASKS = ("one", "two", "three")
N = 2000
SCORES = [float(index % 2) for index in range(N)]


def again(lost, won):
    """The same answers but for some that were right, and some that were wrong."""
    found = list(SCORES)
    for place in range(lost):
        found[2 * place + 1] = 0.0
    for place in range(won):
        found[2 * place] = 1.0
    return found


@pytest.fixture
def reported(tmp_path_factory, write_evaluation):
    """A report on a base and two trials that lose nothing; ``reruns`` are by recipe and task."""

    def reported(reruns):
        inputs = {}
        for recipe in ("bf16", "int8", "fp8"):
            for task in TASKS:
                shards = {"trial/scores": write_evaluation(task, SCORES)}
                found = {"trial": reruns.get((recipe, task))}
                if recipe != "bf16":
                    shards["base/scores"] = write_evaluation(task, SCORES)
                    found["base"] = reruns.get(("bf16", task))
                for side, scores in found.items():
                    if scores is not None:
                        shards[f"{side}_rerun/1/scores"] = write_evaluation(task, scores)
                out = inputs[f"compare/m/{recipe}/{task}"] = tmp_path_factory.mktemp("compare")
                compare(CompareConfig(task=task, leaves=[task]), shards, out)
        trials = [
            TrialRow(name=f"m/{recipe}", model="m", recipe=recipe, base="m/bf16", is_base=recipe == "bf16")
            for recipe in ("bf16", "int8", "fp8")
        ]
        suites = [SuiteRow(name="all", tasks=list(TASKS))]
        out = tmp_path_factory.mktemp("report")
        report(ReportConfig(title="t", trials=trials, tasks=list(TASKS), suites=suites, failures=[]), inputs, out)
        rows = json.loads((out / "summary.json").read_text())["rows"]
        cells = {(row["recipe"], row["task"]): (row["verdict"], row["reason"]) for row in rows}
        return cells, {each.recipe: each.decision for each in read_document(out).trials}

    return reported


EQUIVALENT, OPEN = ("equivalent", None), ("inconclusive", "differs from itself")


def test_a_base_that_scores_otherwise_leaves_the_task_s_cells_open_and_nothing_is_shipped(reported):
    cells, decisions = reported({("bf16", "one"): again(40, 5), ("bf16", "two"): again(5, 5)})
    assert cells["int8", "one"] == cells["fp8", "one"] == OPEN
    assert cells["int8", "two"] == cells["fp8", "three"] == EQUIVALENT
    assert cells["bf16", "one"] == (None, None)
    assert decisions == {"bf16": None, "int8": "not decided", "fp8": "not decided"}


def test_a_trial_that_does_leaves_its_own_cell_open(reported):
    cells, decisions = reported({("bf16", "one"): again(5, 5), ("int8", "one"): again(5, 40)})
    assert (cells["int8", "one"], cells["fp8", "one"], cells["int8", "two"]) == (OPEN, EQUIVALENT, EQUIVALENT)
    assert (decisions["int8"], decisions["fp8"]) == ("not decided", "ship")


@pytest.mark.dear
def test_of_many_reruns_one_differs_by_chance(reported):
    """The smallest of six p is .02 by itself, which all six together make .12."""
    reruns = {(recipe, task): again(4, 4) for recipe in ("bf16", "int8") for task in TASKS}
    assert reported({("bf16", "one"): again(12, 3)})[0]["fp8", "one"] == OPEN
    cells, decisions = reported(reruns | {("bf16", "one"): again(12, 3)})
    assert set(cells.values()) == {EQUIVALENT, (None, None)}
    assert (decisions["int8"], decisions["fp8"]) == ("ship", "ship")


def test_noise_that_goes_both_ways_hides_equivalence_but_no_wide_margin(reported):
    cells, decisions = reported({("bf16", task): again(300, 300) for task in TASKS})
    assert cells["int8", "one"] == ("inconclusive", "margin within noise")
    assert decisions["int8"] == "ship", "none of it is a loss"
