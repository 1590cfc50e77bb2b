"""Profiles in a plan: what makes a point another point, what runs together, what is refused before a server starts."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.planning.facts import resolve
from pipeline.planning.plan import Plan
from pipeline.results.report_step import report_step
from pipeline.running.batches import batches
from pipeline.running.outcome import RunContext, Status
from pipeline.running.placement import Node, request
from pipeline.running.selection import chosen
from pipeline.running.worker import run_batch
from pipeline.steps.roles import under
from pipeline.steps.step import Resources
from pipeline.store.store import Address
from tests.pipeline.fakes import note, serving
from tests.pipeline.planning.test_plan import by_stage, planned, trials_of

pytestmark = pytest.mark.dear  # each composes and plans a sweep

SMOKE = "+sweep=smoke_profile"
PRODUCT = "gpu.product='NVIDIA H100 80GB HBM3'"
H100 = ("+sweep=profile_llama31_8b", "gpu.driver=570.1", PRODUCT)
ONE = ("+sweep=profile_llama31_8b", "sweep.axes.recipe=[bf16]", PRODUCT)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("plan"), *ONE, "gpu.driver=570.1")


def points(plan: Plan) -> set[str]:
    return {step.fingerprint for step in by_stage(plan, "profile")}


def test_every_workload_is_measured_alone_at_its_most_and_at_rates_up_to_that(tmp_path: Path) -> None:
    plan = planned(tmp_path, SMOKE)
    for trial in plan.trials.values():
        assert list(under(trial.steps, "profile")) == [
            "first_token_64/synchronous",
            "first_token_64/throughput",
            "short/synchronous",
            "short/throughput",
            "short/rate-0.5",
        ]
        rate = plan.steps[trial.steps["profile/short/rate-0.5"]]
        assert rate.inputs["throughput"] == trial.steps["profile/short/throughput"]
        assert trial.steps["ceilings"] == by_stage(plan, "ceilings")[0].ref
    assert len(by_stage(plan, "ceilings")) == 1


def test_the_points_of_a_checkpoint_share_one_server_that_has_its_node_to_itself(tmp_path: Path) -> None:
    plan = planned(tmp_path, *H100)
    served = [batch for batch in batches(plan.steps.values(), replicas=4) if batch.steps[0].stage.name == "profile"]
    assert len(served) == 4
    assert all(len(batch.steps) == 16 for batch in served)
    assert all(batch.resources == Resources(num_cpus=4, num_gpus=1, is_alone=True) for batch in served)


def test_alone_on_the_smallest_node_that_has_the_gpus() -> None:
    nodes = [Node(64, 8, 500), Node(16, 2, 100), Node(8, 0, 50)]
    assert request(Resources(num_gpus=1, is_alone=True), nodes) == Resources(16, 2, is_alone=True)
    assert request(Resources(num_gpus=4, is_alone=True), nodes) == Resources(64, 8, is_alone=True)
    assert request(Resources(num_gpus=9, is_alone=True), nodes) == Resources(num_gpus=9, is_alone=True)


@pytest.mark.parametrize(
    "changed",
    [
        "gpu.driver=580.2",
        "engine.max_num_seqs=32",
        "engine.tensor_parallel_size=2",
        "server.replicas=2",
        "gpu.product='NVIDIA H100 PCIe'",
    ],
)
def test_what_moves_a_clock_makes_another_point(tmp_path: Path, one: Plan, changed: str) -> None:
    driver = [] if changed.startswith("gpu.driver") else ["gpu.driver=570.1"]
    assert points(one).isdisjoint(points(planned(tmp_path, *ONE, *driver, changed)))


@pytest.mark.parametrize(
    "same",
    ["server.num_clients=9", "server.port=8123", "server.num_starts=1", "gpu.prices=[{num_gpus: 1, usd_per_hour: 9}]"],
)
def test_what_does_not_keeps_it(tmp_path: Path, one: Plan, same: str) -> None:
    assert points(one) == points(planned(tmp_path, *ONE, "gpu.driver=570.1", same))


def test_more_rates_leave_what_is_measured(tmp_path: Path) -> None:
    before, after = planned(tmp_path, SMOKE), planned(tmp_path, SMOKE, "workloads.short.rates=[0.5,0.8]")
    assert points(before) < points(after)
    assert len(points(after)) == len(points(before)) + 2


def test_a_server_that_is_started_again_measures_every_point_again(tmp_path: Path) -> None:
    once, thrice = planned(tmp_path, SMOKE), planned(tmp_path, SMOKE, "server.num_starts=3")
    assert points(once) < points(thrice), "the first start keeps what it measured"
    assert len(points(thrice)) == 3 * len(points(once))
    assert all("start" not in step.payload[3] for step in by_stage(once, "profile")), "nor does its fingerprint change"
    for trial in thrice.trials.values():
        rates = [thrice.steps[trial.steps[f"profile/short/rate-0.5{start}"]] for start in ("", "/2", "/3")]
        assert {step.inputs["throughput"] for step in rates} == {trial.steps["profile/short/throughput"]}
        assert [step.config.start for step in rates] == [1, 2, 3]
    starts = [batch for batch in batches(thrice.steps.values()) if batch.steps[0].stage.name == "profile"]
    assert sorted((batch.steps[0].trial, batch.turn, len(batch.steps)) for batch in starts) == [
        (trial, turn, 5) for trial in sorted(thrice.trials) for turn in range(3)
    ]


def test_where_nothing_is_said_a_server_is_started_as_often_as_an_interval_needs(tmp_path: Path) -> None:
    assert {step.config.start for step in by_stage(planned(tmp_path, "suite=none", "serving=smoke"), "profile")} == {
        1,
        2,
        3,
    }


def test_a_new_price_makes_a_new_report_only(tmp_path: Path) -> None:
    from pipeline.store.store import Store

    store = Store(tmp_path)

    def made(*overrides: str) -> tuple[str, str]:
        trials = trials_of(SMOKE, *overrides)
        plan = planned(tmp_path, SMOKE, *overrides)
        step = report_step(plan, trials[0].config, store)
        return plan.fingerprint, step.fingerprint

    plan, report = made()
    dearer_plan, dearer_report = made("gpu.prices=[{num_gpus: 1, usd_per_hour: 9}]")
    assert dearer_plan == plan
    assert dearer_report != report


def test_dummy_weights_need_nothing_but_a_shape(tmp_path: Path) -> None:
    plan = planned(tmp_path, *H100)
    assert {step.stage.name for step in plan.steps.values()} == {"dummy", "profile", "ceilings"}
    assert len(by_stage(plan, "dummy")) == 4


def test_a_workload_can_be_chosen(tmp_path: Path) -> None:
    plan = planned(tmp_path, SMOKE)
    taken = chosen(plan, list(plan.steps.values()), ["short"])
    assert {step.config.workload for step in taken if step.stage.name == "profile"} == {"short"}
    assert "fetch_model" in {step.stage.name for step in taken}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([SMOKE, "workloads.short.prompt_tokens=9000"], "workload short is 9008 tokens long.*engine.max_model_len=512"),
        ([SMOKE, "gpu.prices=[]"], r"gpu=none has no price: add prices: .* conf/gpu/none.yaml"),
        ([SMOKE, "gpu=h100"], "gpu=h100, but the engine runs on no GPU"),
        ([*ONE, "gpu=none"], "the engine runs on GPUs, but gpu=none"),
        ([*ONE], r"this machine shows no NVIDIA H100 80GB HBM3: say what the workers have, gpu.driver=VERSION"),
        ([*ONE[:2], "gpu.driver=570"], r"this machine shows no H100: say .* and gpu.product='NVIDIA ...'"),
        ([SMOKE, "+mixes.chat={shrot: 1}"], r"mixes.chat names 'shrot', which is no workload of the sweep: "),
        ([SMOKE, "engine=transformers"], "workloads are served by vLLM"),
        ([SMOKE, "model.weights=dummy", "suite=smoke"], "dummy weights, which need a shape and answer no task"),
        ([SMOKE, "model.weights=dummy", "model.shape=null"], "dummy weights, but no shape: give model.shape"),
        ([*ONE, "gpu.driver=570", "engine.pipeline_parallel_size=2"], "llama31_8b is spread over nodes"),
        ([SMOKE, "serving=none"], "no tasks to evaluate and no workloads to serve: choose suite=NAME or serving=NAME"),
    ],
)
def test_bad_input_is_one_line_that_names_the_fix(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        resolve(trials_of(*overrides), tmp_path / "cache")
    assert "\n" not in str(told.value)


def test_a_rate_is_skipped_when_the_point_it_needs_failed(tmp_path: Path) -> None:
    checkpoint = note("weights")
    most = serving("most", checkpoint, scratch=str(tmp_path), behaviour="data_error")
    rate = serving("rate", checkpoint, most, scratch=str(tmp_path))
    other = serving("other", checkpoint, scratch=str(tmp_path))
    first, batch = batches([checkpoint, most, rate, other])
    context = RunContext(Address(tmp_path), "run", max_attempts=1)
    outcomes = run_batch(batch, context, run_batch(first, context, []))
    assert [outcome.status for outcome in outcomes] == [Status.failed, Status.skipped, Status.succeeded]
