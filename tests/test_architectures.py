"""Tiny models of many architectures through the command: fetched, quantized three ways, gated, evaluated, compared; and
each checkpoint read again without the product.
"""

import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.results.results import load
from stages.errors import ConfigError, EngineError
from stages.evaluate.config import EngineConfig, EngineKind
from stages.evaluate.engines.protocol import ScoreRequest
from stages.evaluate.session import open_engine
from tests.architectures import ARCHITECTURES, SIX, make
from tests.independent_reading import ERRORS, linears, others, quantized, read, relative_error

ROOT = Path(__file__).parents[1]
SWEEP = """\
# @package _global_
defaults:
  - override /model: {first}
  - override /suite: none
  - override /engine: transformers
sweep:
  name: architectures
  axes:
    model: [{models}]
    recipe: [bf16, w8a8_fp, w8a8_int, w4a16_int]
  adjust:
    - {{when: {{recipe: w4a16_int}}, set: [recipe.group_size=32]}}
calibration: {{num_calibration_samples: 8, max_seq_length: 64}}
gate: {{num_probe_tokens: 4}}
engine: {{dtype: float32, max_model_len: 512, batch_size: 4}}
tasks:
  iris: {{task: tabular_iris, num_docs: {{tabular_iris: 120}}, limit: 2, num_fewshot: 0}}
"""
pytestmark = pytest.mark.e2e


@dataclass(frozen=True, slots=True)
class Swept:
    """Where the models lie, and what a sweep over them has stored."""

    models: Path
    store: Path

    def checkpoint(self, model: str, recipe: str) -> Path:
        (found,) = (self.store / "quantize").glob(f"{model}-{recipe}-*")
        return found


def sweep(directory: Path, tokenizer: Path, names: tuple[str, ...]) -> Swept:
    for folder in ("model", "sweep"):
        (directory / "own" / folder).mkdir(parents=True)
    for name in names:
        (directory / "models" / name).mkdir(parents=True)
        path = make(name, tokenizer, directory / "models" / name)
        text = f"defaults: [model_schema, _self_]\nname: {name}\nsource: {{path: {path}}}\n"
        (directory / "own" / "model" / f"{name}.yaml").write_text(text)
    (directory / "own" / "sweep" / "all.yaml").write_text(SWEEP.format(first=names[0], models=", ".join(names)))
    own = ["--config-dir=own", "+sweep=all", "cluster=inline", "tracking=off"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "1000"}
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", *own],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Swept(directory / "models", directory / "results" / "store")


def check(swept: Swept, name: str) -> None:
    """Every trial was measured and compared, and each checkpoint holds what it should and nothing else."""
    rows = load(swept.store, "architectures").summary().to_pylist()
    of_model = {row["recipe"]: row for row in rows if row["model"] == name}
    assert {recipe: row["status"] for recipe, row in of_model.items()} == dict.fromkeys(("bf16", *ERRORS), "measured")
    assert [recipe for recipe, row in of_model.items() if row["verdict"] is not None] == list(ERRORS)
    base = read(swept.models / name)
    layers = linears(base)
    assert len(layers) == ARCHITECTURES[name].num_linears
    for recipe, (least, most) in ERRORS.items():
        made = read(swept.checkpoint(name, recipe))
        assert quantized(made) == layers
        errors = {layer: relative_error(made, layer, base[f"{layer}.weight"]) for layer in layers}
        assert {layer: error for layer, error in errors.items() if not least <= error <= most} == {}
        kept, kept_in_base = others(made, layers), others(base, layers)
        assert kept.keys() == kept_in_base.keys()
        assert [key for key, tensor in kept.items() if not tensor.equal(kept_in_base[key])] == []


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Swept:
    return sweep(tmp_path_factory.mktemp("six"), tiny_model, SIX)


@pytest.mark.parametrize("name", SIX)
def test_of_six_architectures_just_the_linear_layers_are_quantized(six: Swept, name: str) -> None:
    check(six, name)


def log_probabilities(checkpoint: Path, kind: EngineKind) -> list[float]:
    """Of single tokens after a context, of a continuation, and of a whole text."""
    draw = random.Random(0)
    tokens = [draw.randrange(3, 380) for _ in range(40)]
    requests = [ScoreRequest(tuple(tokens[:20]), (token,)) for token in (50, 60, 70)]
    requests += [ScoreRequest(tuple(tokens[:30]), tuple(tokens[30:])), ScoreRequest((1,), tuple(tokens))]
    settings = EngineConfig(kind=kind, dtype="float32", max_model_len=256, kv_cache_gib=0.25, max_num_seqs=8)
    engine = open_engine(checkpoint, settings)
    try:
        return [score.logprob for score in engine.loglikelihood(requests)]
    finally:
        engine.close()


def assert_read_alike(checkpoint: Path) -> None:
    """By vLLM and transformers; one whose inputs are not rounded, where either may fall on another side."""
    found, expected = (log_probabilities(checkpoint, kind) for kind in (EngineKind.vllm, EngineKind.transformers))
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.vllm
def test_vllm_and_transformers_read_the_same_checkpoint(six: Swept) -> None:
    assert_read_alike(six.checkpoint("qwen3", "w4a16_int"))


@pytest.mark.vllm
def test_of_a_mixture_they_do_also_after_a_dense_model_that_could_not_be_opened(six: Swept, tmp_path: Path) -> None:
    broken = shutil.copytree(six.models / "qwen3", tmp_path / "broken")
    (file,) = broken.glob("*.safetensors")
    save_file(load_file(file) | {"model.nobodys.weight": torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    with pytest.raises(EngineError, match="could not load"):
        log_probabilities(broken, EngineKind.vllm)
    assert_read_alike(six.checkpoint("qwen3_moe", "w4a16_int"))


@pytest.mark.vllm
def test_experts_that_vllm_would_pass_over_are_refused(six: Swept) -> None:
    with pytest.raises(ConfigError, match=r"GptOssForCausalLM.*engine=transformers"):
        log_probabilities(six.checkpoint("gpt_oss", "w4a16_int"), EngineKind.vllm)


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Swept:
    return sweep(tmp_path_factory.mktemp("rest"), tiny_model, tuple(name for name in ARCHITECTURES if name not in SIX))


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in SIX])
def test_of_the_others_too(rest: Swept, name: str) -> None:
    check(rest, name)


@pytest.mark.full
@pytest.mark.vllm
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["mistral", "glm4"])
def test_of_two_more_they_do(rest: Swept, name: str) -> None:
    assert_read_alike(rest.checkpoint(name, "w4a16_int"))
