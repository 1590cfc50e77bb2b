"""Somebody else's quantized checkpoints through the pipeline as a user runs it: fetched, gated, evaluated, compared."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.results.results import load
from tests.quantized import save_compressed, save_fp8_blocks
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


def arithmetic(directory: Path, recipe: str) -> dict[str, Any]:
    (answers,) = (directory / "results" / "store" / "answer").glob(f"tiny-{recipe}-*/answers.json")
    found: dict[str, Any] = json.loads(answers.read_text())["arithmetic"]
    return found
