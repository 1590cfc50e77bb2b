"""Somebody else's quantized checkpoints through the pipeline as a user runs it: fetched, gated, evaluated, compared."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.results.results import load
from tests.quantized import save_awq, save_compressed, save_fp8_blocks, save_moe
from tests.test_end_to_end import run

SWEEP = """\
# @package _global_
defaults:
  - override /model: tiny
  - override /suite: none
  - override /engine: transformers
sweep:
  name: tiny
  axes: {recipe: [bf16, published_fp8, published_nvfp4]}
gate: {num_probe_tokens: 4}
engine: {dtype: float32, max_model_len: 512, batch_size: 4}
tasks:
  iris: {task: tabular_iris, num_docs: {tabular_iris: 120}, limit: 6, num_fewshot: 0, shard_size: 6}
"""


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path) -> Path:
    """A directory with a sweep over a tiny model and two checkpoints of it that its file lists."""
    for folder in ("model", "sweep"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    places = {
        "fp8": save_fp8_blocks(tiny_model, tmp_path / "fp8"),
        "nvfp4": save_compressed(tiny_model, tmp_path / "nvfp4", "NVFP4A16"),
    }
    listed = "".join(f"  {name}: {{path: {path}}}\n" for name, path in places.items())
    (tmp_path / "own" / "model" / "tiny.yaml").write_text(
        f"defaults: [model_schema, _self_]\nname: tiny\nsource: {{path: {tiny_model}}}\npublished:\n{listed}"
    )
    (tmp_path / "own" / "sweep" / "tiny.yaml").write_text(SWEEP)
    return tmp_path


@pytest.mark.e2e
def test_checkpoints_of_others_are_trials(tiny: Path) -> None:
    done = run(tiny, "tracking=off")
    assert done.returncode == 0, done.stdout + done.stderr
    told = "fp8: weights FP8 (blocks of 32 x 32), activations FP8 (groups of 32)"
    assert f"note: tiny/published_fp8: {told}" in done.stdout
    caution = "note: tiny/published_fp8: transformers computes with its dequantized weights alone"
    assert caution in done.stdout
    (report,) = (tiny / "results" / "store" / "report").glob("*/report.md")
    assert f"> published_fp8: {told}" in report.read_text()
    for recipe in ("published_fp8", "published_nvfp4"):
        assert re.search(rf"tiny/{recipe}\s+iris\s+6\s+[01]\.\d+", done.stdout), done.stdout
    rows = {row["trial"]: row for row in load(tiny / "results" / "store", "tiny").summary().to_pylist()}
    assert rows["tiny/published_fp8"]["quantized"].startswith(told)
    assert rows["tiny/bf16"]["quantized"] is None
    sizes = [rows[f"tiny/{recipe}"]["size_gib"] for recipe in ("bf16", "published_fp8", "published_nvfp4")]
    assert sizes == sorted(sizes, reverse=True)
    fp8, nvfp4 = (arithmetic(tiny, recipe) for recipe in ("published_fp8", "published_nvfp4"))
    assert (fp8["weights"], fp8["inputs"]) == ("dequantized to float32", []), "blocks of activations are not rounded"
    assert (nvfp4["weights"], nvfp4["inputs"]) == ("dequantized to bfloat16", [])


HUB = Path(os.environ.get("QUANTSWEEP_DATA", "/nowhere"))


@pytest.mark.e2e
@pytest.mark.full
@pytest.mark.skipif(not (HUB / "openai" / "gsm8k").is_dir(), reason="QUANTSWEEP_DATA names no mirror of data sets")
def test_the_study_runs_cut_down_with_stand_ins_for_two_models(tmp_path: Path, tiny_model: Path) -> None:
    places = {"dense": tiny_model, "mixture": save_moe(tiny_model, tmp_path / "mixture")}
    (tmp_path / "own" / "model").mkdir(parents=True)
    for name, model in places.items():
        fp8 = save_fp8_blocks(model, tmp_path / f"{name}_fp8")
        awq = save_awq(model, tmp_path / f"{name}_awq")
        nvfp4 = save_compressed(model, tmp_path / f"{name}_nvfp4", "NVFP4A16", ("lm_head", "re:.*mlp.gate$"))
        (tmp_path / "own" / "model" / f"{name}.yaml").write_text(
            f"defaults: [model_schema, _self_]\nname: {name}\nsource: {{path: {model}}}\n"
            f"published: {{fp8: {{path: {fp8}}}, nvfp4: {{path: {nvfp4}}}, awq: {{path: {awq}}}}}\n"
        )
    cut = [
        "sweep.axes.model=[dense,mixture]",
        "sweep.axes.recipe=[bf16,published_fp8,published_awq,published_nvfp4]",
        *("engine=transformers", "engine.dtype=float32", "engine.max_model_len=512", "engine.gpu_memory_gib=null"),
        *("~tasks.mmlu_pro", "suites.published.tasks=[gsm8k,ifeval]", "gate.num_probe_tokens=4"),
        *("tasks.gsm8k.limit=2", "tasks.gsm8k.num_fewshot=0", "tasks.gsm8k.gen_kwargs.max_gen_toks=8"),
        *("tasks.ifeval.limit=2", "tasks.ifeval.gen_kwargs.max_gen_toks=8"),
    ]
    done = run(tmp_path, *cut, f"data.mirror={HUB}", "tracking=off", sweep="published_nvfp4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = load(tmp_path / "results" / "store", "published_nvfp4").summary().to_pylist()
    assert len(rows) == 2 * 4 * 2
    assert {row["status"] for row in rows} == {"measured"}
    told = {row["trial"]: row["quantized"] for row in rows if row["quantized"]}
    assert set(told) == {f"{model}/published_{form}" for model in places for form in ("fp8", "awq", "nvfp4")}
    for form in ("fp8", "awq", "nvfp4"):
        assert "32 linear layers quantized, 3 not (mlp.gate 2, lm_head)" in told[f"mixture/published_{form}"]


def arithmetic(directory: Path, recipe: str) -> dict[str, Any]:
    (answers,) = (directory / "results" / "store" / "answer").glob(f"tiny-{recipe}-*/answers.json")
    found: dict[str, Any] = json.loads(answers.read_text())["arithmetic"]
    return found
