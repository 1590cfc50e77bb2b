"""How long steps are expected to take: by the table, by what the store has measured, or not known, and that is said."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.planning.estimate import Estimator
from pipeline.planning.plan import Plan
from pipeline.planning.rates import CPU, Rate, Rates
from pipeline.steps.step import Step, StepRef
from pipeline.store.timing import Timing
from stages.checkpoints.shape import num_parameters
from tests.pipeline.planning.test_plan import by_stage, planned

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
DOCUMENT = ("documents", 0.5)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("plan"), "+sweep=smoke", "engine=vllm_gpu", "gpu=h100")


def size(plan: Plan) -> int:
    shape = next(iter(plan.trials.values())).trial.config.model.shape
    assert shape is not None
    return num_parameters(shape)


def rates(plan: Plan, half: bool = False) -> Rates:
    measured_on = size(plan) / (2 if half else 1)
    return Rates(
        [
            Rate("s", "answer", "start", (), "H100", measured_on, fixed_s=60.0),
            Rate("s", "answer", "choices", (), "H100", measured_on, sized_each=(DOCUMENT,)),
            Rate("s", "answer", "texts", (), "H100", measured_on, each=(("output_tokens", 0.01),)),
            Rate("s", "gate", "", (), "H100", measured_on, fixed_s=20.0),
        ]
    )


def estimator(
    plan: Plan, device: str | None, timings: dict[StepRef, Timing] | None = None, half: bool = False
) -> Estimator:
    return Estimator(plan, dict.fromkeys(plan.trials, device), timings or {}, rates(plan, half))


def one(steps: Iterable[Step], task: str) -> Step:
    return next(step for step in steps if step.config.task == task)


def timing(seconds: float, before_s: float = 0.0, product: str = H100) -> Timing:
    return Timing("run", "host", 0.0, before_s + seconds, seconds, (product,), 1.0)


@pytest.mark.dear
def test_choices_go_by_documents_and_texts_by_the_tokens_they_may_have(plan: Plan) -> None:
    found = estimator(plan, H100)
    choices, texts = (one(by_stage(plan, "answer"), task) for task in ("tabular_iris", "mathador"))
    assert found.batch_s([choices, texts]) == (60 + 10 * 0.5, 12 * 64 * 0.01)
    assert found.batch_s([texts, choices]) == (60 + 12 * 64 * 0.01, 10 * 0.5)


def test_what_grows_with_the_model_is_scaled_and_that_is_said(plan: Plan) -> None:
    found = estimator(plan, H100, half=True)
    choices = one(by_stage(plan, "answer"), "tabular_iris")
    assert found.batch_s([choices, choices])[1] == 2 * 10 * 0.5
    assert list(found.grounds.scaled) == [("answer", size(plan) / 2, size(plan))]
    assert not estimator(plan, H100).grounds.scaled


@pytest.mark.parametrize("device", [A100, None, CPU])
def test_what_nothing_like_it_was_measured_of_is_unknown_and_not_nought(plan: Plan, device: str | None) -> None:
    found = estimator(plan, device)
    (gate, *_), (evaluation, *_) = by_stage(plan, "gate"), by_stage(plan, "answer")
    assert found.batch_s([gate]) == found.batch_s([evaluation]) == (None,)
    assert found.grounds.unknown["gate", device] == 1


def test_a_stage_without_a_row_is_unknown(plan: Plan) -> None:
    (quantize, *_) = by_stage(plan, "quantize")
    assert estimator(plan, H100).batch_s([quantize]) == (None,)


def test_what_the_store_has_measured_corrects_what_is_alike(plan: Plan) -> None:
    """The median: one odd step is not believed."""
    gates = by_stage(plan, "gate")
    timings = {step.ref: timing(seconds) for step, seconds in zip(gates, (30.0, 30.0, 900.0), strict=True)}
    found = estimator(plan, H100, timings)
    assert found.batch_s(gates[:1]) == (30.0,)
    assert found.grounds.corrected["gate"] == 1
    choices = one(by_stage(plan, "answer"), "tabular_iris")
    assert found.batch_s([choices])[0] == 65.0, "nothing was measured of evaluations"


def test_the_opening_of_an_engine_and_the_answers_are_corrected_apart(plan: Plan) -> None:
    iris, wine = (one(by_stage(plan, "answer"), f"tabular_{name}") for name in ("iris", "wine"))
    timings = {iris.ref: timing(10.0, before_s=90.0), wine.ref: timing(10.0, before_s=0.1)}
    assert estimator(plan, H100, timings).batch_s([iris, wine]) == (90.0 + 10.0, 10.0)


def test_an_exchange_of_weights_is_no_opening(plan: Plan) -> None:
    """The steps of a second checkpoint in an open session wait for its weights, and say nothing of how it opens."""
    iris = [step for step in by_stage(plan, "answer") if step.config.task == "tabular_iris"][1:3]
    exchanged = timing(5.0, before_s=4.0)._replace(num_exchanges=1)
    found = estimator(plan, H100, {iris[1].ref: exchanged})
    assert found.batch_s(iris) == (65.0, 5.0)


def test_a_gpu_of_which_the_table_knows_nothing_becomes_known_by_the_store(plan: Plan) -> None:
    gates = by_stage(plan, "gate")
    measured = {gates[0].ref: timing(44.0, product=A100)}
    assert estimator(plan, A100, measured).batch_s(gates[:2]) == (44.0, 44.0)
    assert estimator(plan, H100, measured).batch_s(gates[:1]) == (20.0,), "another GPU corrects nothing"


@pytest.mark.dear
def test_an_answer_s_length_is_the_sweep_s_or_the_task_s_own(tmp_path: Path) -> None:
    def tokens(*cli: str) -> set[int | None]:
        steps = by_stage(planned(tmp_path, "recipe=bf16", "suite=none", *cli), "answer")
        return {step.output_tokens for step in steps}

    assert tokens("+task@tasks.t=gsm8k_cot") == {1024}
    assert tokens("+task@tasks.t=gsm8k_cot", "tasks.t.gen_kwargs.max_gen_toks=96") == {96}
    assert tokens("+task@tasks.t=ifeval") == {1280}
    assert tokens("+task@tasks.t=mmlu") == {0}
    assert tokens("+task@tasks.t=wikitext") == {None}
