"""What the planned GPU's kernels make of a format: refused, labelled, or another result, before any work."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.planning import kernels_asked
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from pipeline.planning.plan import Plan
from pipeline.results import terminal
from pipeline.results.plan_summary import summarize
from pipeline.results.report_step import report_step
from pipeline.store.store import Store
from stages.checkpoints.formats import FORMATS
from stages.evaluate.config import AnswerConfig
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
