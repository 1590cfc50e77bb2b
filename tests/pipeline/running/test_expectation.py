"""What a run is expected to cost before it starts: by prices of the GPUs that steps hold, and against its budget."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.execution import BudgetConfig, ClusterConfig, RunnerKind
from pipeline.planning.plan import Plan
from pipeline.planning.prices import usd_an_hour
from pipeline.running.expectation import Expectation, capacity_of, expect, limits_of, over_budget
from pipeline.store.store import Store
from tests.pipeline.planning.test_plan import by_stage, planned

TWO_GPUS = ClusterConfig(num_gpus=2, num_cpus=8)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("plan"), "+sweep=smoke", "engine=vllm_gpu", "gpu=h100")


def expected_of(
    plan: Plan, directory: Path, hours: float | None = 1.0, cluster: ClusterConfig = TWO_GPUS
) -> Expectation:
    """Every step on GPUs takes so long, the others no time."""
    found = expect(plan, list(plan.steps.values()), Store(directory), cluster)
    seconds = None if hours is None else hours * 3600
    work = [
        replace(batch, steps=tuple(step.expecting(seconds if step.resources.num_gpus else 0.0) for step in batch.steps))
        for batch in found.batches
    ]
    return replace(found, batches=work, end_s=[0.0] * len(work))


def test_hours_and_dollars_are_those_of_the_gpus_that_steps_hold(plan: Plan, tmp_path: Path) -> None:
    found = expected_of(plan, tmp_path)
    num_steps = sum(step.resources.num_gpus > 0 for step in plan.steps.values())
    assert found.gpu_hours == num_steps
    assert found.usd == pytest.approx(3.29 * num_steps)
    assert found.wall_s is not None
    assert num_steps / 2 <= found.wall_s / 3600 < num_steps
    assert found.usd_rented == pytest.approx(6.38 * found.wall_s / 3600)
    without = expected_of(plan, tmp_path, cluster=ClusterConfig(runner=RunnerKind.inline))
    assert (without.wall_s, without.num_gpus) == (num_steps * 3600, 1)


@pytest.mark.dear
def test_a_gpu_without_a_price_has_no_dollars(tmp_path: Path) -> None:
    unpriced = planned(tmp_path, "recipe=bf16", "engine=vllm_gpu", "gpu=h200")
    assert expected_of(unpriced, tmp_path).usd is None
    assert usd_an_hour(unpriced, by_stage(unpriced, "answer")[0]) is None
    assert usd_an_hour(unpriced, by_stage(unpriced, "compare")[0]) == 0


def test_a_budget_that_will_not_do_is_said_once_each(plan: Plan, tmp_path: Path) -> None:
    limits = limits_of(BudgetConfig(gpu_hours=3, usd=1000), plan)
    assert over_budget(expected_of(plan, tmp_path), limits_of(BudgetConfig(usd=62.6), plan)) == []
    assert len(over_budget(expected_of(plan, tmp_path), limits_of(BudgetConfig(usd=62.4), plan))) == 1, "19 at 3.29"
    (line,) = over_budget(expected_of(plan, tmp_path), limits)
    assert line.startswith("budget.gpu_hours=3 will not do: this run is expected to take 19; it stops before")
    assert over_budget(expected_of(plan, tmp_path, None), limits) == [], "nothing is known"


def test_what_a_cluster_elsewhere_has_is_what_somebody_says() -> None:
    assert capacity_of(ClusterConfig(address="auto")).num_gpus is None
    assert capacity_of(ClusterConfig(address="auto", num_gpus=16)).num_gpus == 16


def test_batches_are_compared_by_what_is_expected_or_else_by_size(plan: Plan, tmp_path: Path) -> None:
    known, unknown = (expected_of(plan, tmp_path, hours) for hours in (1.0, None))
    (quantize, *_) = (batch for batch in known.batches if batch.steps[0].stage.name == "quantize")
    assert known.urgency(quantize) == 3600
    (evaluate, *_) = (batch for batch in unknown.batches if batch.steps[0].stage.name == "answer")
    assert unknown.urgency(evaluate) > unknown.urgency(quantize) > 0


def test_without_ray_a_family_opens_one_engine(plan: Plan, tmp_path: Path) -> None:
    """Two recipes of one format that differ in a value: the second waits for its weights only."""
    axes = ["sweep.axes.recipe=[w8a8_int]", "+sweep.axes.seed=[0,1]"]
    on_gpu = ["engine=vllm_gpu", "engine.exchange_weights=true", "gpu=h100"]
    twins = planned(tmp_path, "+sweep=smoke", *on_gpu, *axes)
    inline, ray = (
        expect(twins, list(twins.steps.values()), Store(tmp_path), cluster)
        for cluster in (ClusterConfig(runner=RunnerKind.inline), TWO_GPUS)
    )
    evaluations = [[batch for batch in each.batches if batch.steps[0].stage.name == "answer"] for each in (inline, ray)]
    assert [len(each) for each in evaluations] == [2, 3], "the base's, and one or two of its twins"
    hours = [next(stage.gpu_hours for stage in each.stages() if stage.name == "answer") for each in (inline, ray)]
    assert 60 < 3600 * (hours[1] - hours[0]) < 90, "one start more"
