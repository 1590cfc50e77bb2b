"""What the planned GPU's kernels make of a format: refused, labelled, or another result, before any work."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.planning import kernels_asked
from pipeline.planning.facts import resolve
from pipeline.planning.kernels_asked import check_split, computed, effective, with_emulation
from pipeline.planning.make_plan import make_plan
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.planning.published import Published
from pipeline.results import terminal
from pipeline.results.plan_summary import summarize
from pipeline.results.report_step import report_step
from pipeline.store.store import Store
from stages.checkpoints.formats import FORMATS, Format
from stages.checkpoints.sizes import ModelSizes
from stages.evaluate.config import AnswerConfig, EngineKind
from stages.published import PublishedSource
from tests.pipeline.planning.test_plan import trials_of

pytestmark = pytest.mark.dear  # composing the first sweep takes three seconds


@pytest.fixture
def planned(monkeypatch):
    """The plan of one trial whose recipe makes ``scheme``, and of its base."""

    def plan(scheme: str, *cli: str, version: str = "0.26.0") -> Plan:
        made = FORMATS[scheme]
        monkeypatch.setattr(kernels_asked, "weight_format", lambda recipe: made if recipe.scheme else None)
        trials = trials_of("+sweep=smoke", "sweep.axes.recipe=[w8a8_fp]", "engine=vllm_gpu", *cli)
        facts = replace(resolve(trials, None), vllm={True: "0.32.0", False: version})
        return make_plan("test", trials, facts)

    return plan


def quantized(plan: Plan) -> AnswerConfig:
    return next(
        step.config for step in plan.steps.values() if step.stage.name == "answer" and step.trial.endswith("w8a8_fp")
    )


def shown(plan: Plan, store: Store) -> str:
    text = io.StringIO()
    config = next(iter(plan.trials.values())).trial.config
    terminal.plan(Console(file=text, width=240), summarize(plan, store, config))
    return text.getvalue()


def test_a_format_that_is_computed_as_another_is_another_result_and_labelled(planned, tmp_path: Path) -> None:
    hopper, blackwell = planned("NVFP4", "gpu=h100"), planned("NVFP4", "gpu=b200")
    assert (quantized(hopper).effective, quantized(blackwell).effective) == ("W4A16", None)
    (text, other) = (shown(plan, Store(tmp_path / "store")) for plan in (hopper, blackwell))
    assert "MarlinNvFp4 as W4A16" in text and "FlashInferCuteDslNvFp4" in other
    assert "W4A4 is computed as W4A16 (MarlinNvFp4LinearKernel): another result" in text and "note:" not in other
    config = next(iter(hopper.trials.values())).trial.config
    rows = report_step(hopper, config, Store(tmp_path / "store")).config.trials
    assert [bool(row.computed) for row in rows] == [not row.is_base for row in rows]


def test_what_is_allowed_to_be_emulated_is_a_third_result(planned, tmp_path: Path) -> None:
    plain, emulated = planned("NVFP4", "gpu=h100"), planned("NVFP4", "gpu=h100", "engine.allow_emulation=true")
    config = quantized(emulated)
    assert config.engine.vllm_args == {"linear_backend": "emulation"} and config.effective is None
    assert not quantized(plain).engine.vllm_args
    assert "W4A4 is emulated (EmulationNvFp4LinearKernel)" in shown(emulated, Store(tmp_path / "store"))
    for scheme, gpu in (("MXFP4", "h100"), ("NVFP4", "b200"), ("FP8_DYNAMIC", "h100")):
        assert not quantized(planned(scheme, f"gpu={gpu}", "engine.allow_emulation=true")).engine.vllm_args


def test_of_a_version_that_the_table_has_not_nothing_is_guessed(planned, tmp_path: Path) -> None:
    plan = planned("NVFP4", "gpu=h100", version="0.31.0")
    assert quantized(plan).effective == "as computed by vLLM 0.31.0 on compute capability 9"
    text = shown(plan, Store(tmp_path / "store"))
    assert "/w8a8_fp: what computes the format is not known, the table of kernels is of vLLM 0.26.0" in text
    assert quantized(planned("W4A16", "gpu=h100", version="0.31.0")).effective is None


KNOWN = {True: "0.32.0", False: "0.26.0"}
NVFP4, FP8 = FORMATS["NVFP4"], FORMATS["FP8_DYNAMIC"]


def published(*formats: Format, **facts: Any) -> Published:
    return Published(PublishedSource(path="/x"), "compressed-tensors", 4, 1.0, formats=formats, **facts)


@pytest.fixture(scope="module")
def config() -> Callable[..., Config]:
    """Of a trial on GPUs, with other fields of its engine."""
    (trial,) = trials_of("+sweep=smoke", "sweep.axes.recipe=[bf16]", "engine=vllm_gpu", "gpu=h100")
    return lambda **engine: replace(trial.config, engine=replace(trial.config.engine, **engine))


def test_a_published_mixture_is_computed_by_the_kernels_of_each_of_its_formats(config: Callable[..., Config]) -> None:
    mixture = published(NVFP4, FP8)
    found = computed(config(), mixture, KNOWN, "m/x")
    assert found is not None and found.shown == "MarlinNvFp4, CutlassFP8 as W4A16 and W8A8"
    assert effective(config(), mixture, found, KNOWN) == "W4A16 and W8A8"
    assert not with_emulation(config(allow_emulation=True), mixture, KNOWN).vllm_args


@pytest.mark.parametrize("formats", [(), (replace(FORMATS["MXFP4A16"], packing="mxfp4"),)])
def test_what_is_not_known_of_a_published_checkpoint_is_of_one_kind_of_gpu(
    config: Callable[..., Config], formats: tuple[Format, ...]
) -> None:
    found = computed(config(), published(*formats), KNOWN, "m/x")
    assert found is None or found.unknown is not None
    assert (
        effective(config(), published(*formats), found, KNOWN) == "as computed by vLLM 0.26.0 on compute capability 9"
    )


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (
            {"tensor_parallel_size": 2},
            r"m/x rotates activations at run time, .* on one GPU alone: set engine.tensor_par",
        ),
        (
            {"on_gpu": False},
            r"m/x rotates activations at run time, which is not simulated on a CPU: choose engine=vllm",
        ),
    ],
)
def test_rotations_at_run_time_take_one_gpu(config: Callable[..., Config], engine: dict[str, Any], said: str) -> None:
    rotated = published(FORMATS["W4A16"], rotates=True)
    with pytest.raises(UserError, match=said):
        computed(config(**engine), rotated, KNOWN, "m/x")
    assert computed(config(), rotated, KNOWN, "m/x") is not None
    assert computed(config(kind=EngineKind.transformers, **engine), rotated, KNOWN, "m/x") is None


def test_blocks_of_a_published_checkpoint_are_split_where_its_quantized_layers_are(
    config: Callable[..., Config],
) -> None:
    """SmolLM2 has 576 outputs of queries: vLLM takes no block of 128 that ends in the keys beside them."""
    (trial,) = trials_of("+sweep=smoke", "sweep.axes.recipe=[bf16]", "engine=vllm_gpu", "gpu=h100")
    sizes = ModelSizes.of_shape(trial.config.model.shape)
    queries, down = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.down_proj"))
    whole = TrialPlan(trial, sizes, published(FORMATS["FP8_BLOCK"], layers=frozenset([queries, down])))
    with pytest.raises(
        UserError, match=r"self_attn.q_proj has 576 outputs, no multiple of block 128; set another recipe"
    ):
        check_split(config(), whole, KNOWN)
    check_split(config(), replace(whole, published=published(FORMATS["FP8_BLOCK"], layers=frozenset([down]))), KNOWN)


def test_a_format_that_a_cpu_simulates_takes_one_process(config: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=r"m/x: W8A8 is simulated on a CPU, in one process; set engine.tensor_parallel"):
        computed(config(on_gpu=False, tensor_parallel_size=2), published(FP8), KNOWN, "m/x")
