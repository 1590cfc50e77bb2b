"""What a plan says that a sweep can see: a line a task, from guesses or from what the store has measured."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from rich.console import Console

from pipeline.planning.plan import Plan
from pipeline.planning.power import Change, TaskPower, gate_power, power
from pipeline.results.earlier import measured_changes
from pipeline.results.power_shown import say_power
from pipeline.store.store import Store
from stages.report.config import SuiteConfig
from tests.pipeline.planning.test_plan import planned

STUDY = ["+sweep=llama31", "data.mirror=null", "sweep.axes.model=[llama31_8b]"]


def seen(plan: Plan, measured: Any = None) -> dict[tuple[str, int], TaskPower]:
    return {(each.task, each.bits): each for each in power(plan, measured or {})}


def printed(tasks: list[TaskPower]) -> str:
    console = Console(file=io.StringIO(), width=250)
    say_power(console, tasks, gate_power(tasks, {}, 0.95))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.dear
def test_of_each_task_a_plan_says_what_it_sees_and_what_it_never_can(tmp_path: Path) -> None:
    tasks = power(planned(tmp_path, *STUDY), {})
    text = printed(tasks)
    lines = {line.split()[0]: re.split(r"  +", line.strip()) for line in text.splitlines() if line.strip()}
    assert lines["mmlu"] == ["mmlu", "14,042", "2", "2.0 %", "0.33", "650", "6.0 %", "0.58", "1,950"]
    assert lines["gsm8k"] == ["gsm8k", "1,319", "2", "4.0 %", "1.54", "1,300", "12.0 %", "2.67", "never (3,899)"]
    assert lines["mmlu_pro"][-1] == "2,407"
    assert lines["wikitext"][3:] == ["–"] * 6, "a perplexity is no share of documents"
    assert sum(text.count(f"\n{task} ") for task in ("mmlu", "gsm8k", "bbh", "wikitext")) == 4, "a line a task"
    assert "all 13 suites and tasks" in text


def test_questions_that_stand_in_several_leaves_count_once(tmp_path: Path) -> None:
    """546 questions as 1,192 documents: 1,156 would be enough of 1,192, but not of 546."""
    found = seen(planned(tmp_path, *STUDY))["gpqa", 8]
    assert found.never_equivalent and found.error == pytest.approx(100 / 0.75 * (0.02 / 546) ** 0.5)


def test_unlike_baselines_make_some_leaves_weigh_more(tmp_path: Path) -> None:
    found = seen(planned(tmp_path, *STUDY))["musr", 8]
    units = [100 / (1 - baseline) for baseline in (1 / 2, 1 / 5, 1 / 3)]
    spread = sum((unit / 3) ** 2 / size for unit, size in zip(units, (250, 256, 250), strict=True))
    assert found.error == pytest.approx((0.02 * spread) ** 0.5)


@pytest.mark.dear
def test_a_loss_larger_than_the_flips_brings_its_own(tmp_path: Path) -> None:
    """Of 12 documents none can be seen to be lost before two thirds are."""
    found = seen(planned(tmp_path, "+sweep=smoke"))["mathador", 8]
    assert found.detectable == pytest.approx(100 * (1.96 + 0.8416) ** 2 / 12, abs=0.01)
    assert found.not_worse == 0.0 and found.num_needed == 650


@pytest.mark.dear
def test_a_limit_may_forbid_what_the_task_could_show(tmp_path: Path) -> None:
    tasks = power(planned(tmp_path, *STUDY, "tasks.hellaswag.limit=600", "tasks.winogrande.limit=600"), {})
    lines = {line.split()[0]: line for line in printed(tasks).splitlines() if line}
    assert "not so (650)" in lines["hellaswag"] and "not so (1,950)" in lines["hellaswag"]
    assert "not so (650)" in lines["winogrande"] and "never (1,950)" in lines["winogrande"]


def test_measured_flips_take_the_place_of_guesses_and_the_worst_trial_counts(tmp_path: Path) -> None:
    plan = planned(tmp_path, *STUDY)
    measured = {
        ("llama31_8b/w8a8_fp", "mmlu"): Change(0.01, 0.01, True),
        ("llama31_8b/w8a8_int", "mmlu"): Change(0.09, 0.09, True),
    }
    found = seen(plan, measured)["mmlu", 8]
    assert found.change == Change(0.09, 0.09, True)
    assert "9.0 %*" in printed([found]) and "measured in this store" in printed([found])


@pytest.mark.parametrize(
    ("numbers", "change"),
    [
        ({"num_pairs": 999, "num_changed": 29, "num_base_only_right": 20}, (0.0295, 0.0295)),
        ({"num_pairs": 999, "num_changed": 29, "num_base_only_right": 20, "design_effect": 2.0}, (0.059, 0.0295)),
        ({"num_pairs": 400, "num_changed": 390, "difference_low": -0.0096, "difference_high": 0.01}, (0.01, None)),
        ({"num_pairs": 199, "num_changed": 20, "num_base_only_right": 20}, None),
        ({"num_pairs": None, "num_changed": None}, None),
    ],
    ids=["flips", "clusters", "graded", "too few", "nothing"],
)
def test_an_earlier_comparison_says_how_much_changes(tmp_path: Path, numbers: Any, change: Any) -> None:
    plan = planned(tmp_path, "+sweep=smoke")
    earlier = planned(tmp_path, "+sweep=smoke", "tasks.mathador.limit=500", "seed=3")
    store = Store(tmp_path / "store")
    steps = earlier.trials["smollm2_135m/w8a8_int"].steps
    for slot in ("mathador", "tabular"):
        with store.draft(earlier.steps[steps[f"compare/{slot}"]]) as draft:
            draft.publish(numbers if slot == "mathador" else {}, {})
    found = measured_changes(plan, store)
    if change is None:
        assert not found
    else:
        assert list(found) == [("smollm2_135m/w8a8_int", "mathador")]
        assert tuple(found["smollm2_135m/w8a8_int", "mathador"][:2]) == pytest.approx(change, abs=1e-4)


def test_what_is_asked_of_a_format_is_passed_in_all_or_not_at_all(tmp_path: Path) -> None:
    plan = planned(tmp_path, *STUDY)
    suites = plan.trials["llama31_8b/bf16"].trial.config.suites
    tasks = power(plan, {})
    for gate in gate_power(tasks, suites, 0.95):
        assert set(suites) < set(gate.parts) and len(gate.parts) == 15
        assert gate.chance == pytest.approx(math.prod(gate.parts.values())) and gate.chance <= min(gate.parts.values())
    narrow = {"leaderboard_v2": replace(suites["leaderboard_v2"], gate=["gpqa"], margin_points=0.1)}
    (_, found) = gate_power(tasks, narrow, 0.95)
    assert found.bits == 4 and list(found.parts) == ["leaderboard_v2", "gpqa"]
    assert found.parts["leaderboard_v2"] < 0.1
    assert gate_power([], suites, 0.95) == []


def test_a_suite_s_mean_has_the_error_of_its_tasks(tmp_path: Path) -> None:
    tasks = power(planned(tmp_path, *STUDY), {})
    found = {each.task: each for each in tasks if each.bits == 4}
    plain = SuiteConfig(tasks=["gsm8k", "gpqa"], gate=[], margin_points=1.0)
    scaled = replace(plain, normalized=True)
    errors = [100 * (0.12 / 1319) ** 0.5, 100 * (0.06 / 546) ** 0.5]
    for suite, unit in ((plain, 1.0), (scaled, 1 / 0.75)):
        error = math.hypot(errors[0], unit * errors[1]) / 2
        (gate,) = gate_power(list(found.values()), {"both": suite}, 0.95)
        assert gate.parts == {"both": pytest.approx(NormalDist().cdf(1.0 / error - 1.959964), abs=1e-4)}
    lacking = replace(plain, tasks=["gsm8k", "wikitext"])
    assert gate_power(list(found.values()), {"both": lacking}, 0.95) == []
