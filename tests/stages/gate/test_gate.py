"""The gate lets healthy checkpoints through and names what is wrong with the others."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.errors import CheckpointError
from stages.gate.behaviour import (
    Behaviour,
    check_answers,
    check_divergence,
    check_loss,
    is_degenerate,
    observed,
    read_behaviour,
)
from stages.gate.config import GateConfig, ObserveConfig
from stages.gate.observe import observe
from stages.gate.stage import gate
from stages.gate.weights import check_weights, read_files
from stages.quantize import Algorithm
from tests.stages.gate.checkpoints import damage, swap

RECIPES = {
    "fp8": {"algorithm": Algorithm.rtn, "scheme": "FP8_DYNAMIC"},
    "int8": {"algorithm": Algorithm.gptq, "scheme": "W8A8", "smoothing_strength": 0.5},
    "int4": {"algorithm": Algorithm.gptq, "scheme": "W4A16", "group_size": 32, "observer": "mse"},
}
LAYER = "model.layers.1.mlp.up_proj"
CHECKS = [
    "files_readable",
    "targeted_layers_quantized",
    "other_tensors_untouched",
    "scales_finite_positive",
    "weights_finite",
    "weights_close",
    "size_ratio",
    "model_loads",
    "logits_finite",
    "held_out_loss",
    "answers_not_degenerate",
    "mean_kl",
    "top1_agreement",
]


@pytest.fixture(scope="session")
def tiny_observed(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("observed")
    assert observe(ObserveConfig(), {"model": tiny_model}, out)["loss"] > 0
    return out


@pytest.fixture
def run(tiny_model, tiny_observed, tmp_path):
    """Gate a checkpoint; returns the metrics (None when it failed), the failure's message and the report by name."""

    def gate_once(checkpoint, **fields):
        out = tmp_path / "gate"
        out.mkdir(exist_ok=True)
        metrics, message = None, ""
        try:
            inputs = {"base": tiny_model, "observed": tiny_observed, "checkpoint": checkpoint}
            metrics = gate(GateConfig(**fields), inputs, out)
        except CheckpointError as error:
            message = str(error)
        report = json.loads((out / "gate.json").read_text())
        failed = {check["name"] for check in report if not check["passed"]}
        assert bool(failed) == bool(message) and "\n" not in message
        assert all(name in message for name in failed)
        return metrics, failed, {check["name"]: check for check in report}

    return gate_once


@pytest.fixture
def damaged(quantize_tiny, tmp_path):
    """A copy of the FP8 checkpoint whose tensors a test has changed."""

    def damage(change):
        path = shutil.copytree(quantize_tiny(**RECIPES["fp8"]), tmp_path / "damaged")
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return damage


@pytest.mark.parametrize("recipe", RECIPES)
def test_healthy_checkpoint_passes_every_check(run, quantize_tiny, recipe):
    metrics, failed, report = run(quantize_tiny(**RECIPES[recipe]))
    assert not failed
    rounds_inputs = recipe != "int4"
    assert list(report) == CHECKS + ["noise_kl"] * rounds_inputs
    assert (metrics["noise_kl"] or 0) > 0 if rounds_inputs else metrics["noise_kl"] is None
    assert report["targeted_layers_quantized"]["value"] == 14
    assert 0 < metrics["mean_kl"] < 0.01 and 0.5 < metrics["top1_agreement"] <= 1
    assert 0.5 < metrics["size_ratio"] < 0.75


def _swap_gate(tensors):
    swap("model.layers.1.mlp.gate_proj", LAYER)(tensors)


def _zero(tensors):
    for name in {f"{LAYER}.weight", f"{LAYER}.weight_packed"} & tensors.keys():
        tensors[name].zero_()


@pytest.mark.parametrize("change", [_swap_gate, _zero])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_layer_that_is_not_the_bases_is_named_however_it_was_rounded(
    tiny_model, quantize_tiny, tmp_path, recipe, change
):
    path = damage(quantize_tiny(**RECIPES[recipe]), tmp_path / "damaged", change)
    failed = {each.name: each.detail for each in check_weights(read_files(tiny_model, path), 0.02) if not each.passed}
    assert failed.keys() == {"weights_close"} and f"{LAYER} is not the base's layer" in failed["weights_close"]


def test_divergence_of_a_model_from_itself_would_be_zero_also_from_what_was_written(tiny_model, tiny_observed):
    base = read_behaviour(tiny_observed)
    kl, agreement = check_divergence(base, observed(tiny_model, num_probe_tokens=4), None)
    assert kl.value == 0 and agreement.value == 1
    assert base.loss == pytest.approx(math.log(384), abs=0.1)  # random weights guess nearly uniformly


def test_a_base_that_was_observed_on_another_device_is_looked_at_again(run, quantize_tiny, tiny_observed):
    facts = json.loads((tiny_observed / "behaviour.json").read_text())
    try:
        (tiny_observed / "behaviour.json").write_text(json.dumps(facts | {"device": "another", "loss": -99.0}))
        _, failed, report = run(quantize_tiny(**RECIPES["fp8"]))
    finally:
        (tiny_observed / "behaviour.json").write_text(json.dumps(facts))
    assert not failed and f"the base has {facts['loss']:.3f}" in report["held_out_loss"]["detail"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_bad_scale_is_found(run, damaged, value):
    _, failed, report = run(damaged(lambda tensors: tensors[f"{LAYER}.weight_scale"][3].fill_(value)))
    assert "scales_finite_positive" in failed
    assert LAYER in report["scales_finite_positive"]["detail"]


def test_the_advice_fits_the_fault(tiny_model, tiny_observed, quantize_tiny, damaged, tmp_path):
    """Files that are damaged are no fault of the recipe."""
    inputs = {"base": tiny_model, "observed": tiny_observed, "checkpoint": quantize_tiny(**RECIPES["fp8"])}
    with pytest.raises(CheckpointError, match=r"mean_kl \(.*; the files are whole, so it is the recipe .* change it$"):
        gate(GateConfig(max_mean_kl=0.0, num_probe_tokens=4), inputs, tmp_path)
    broken = damaged(lambda tensors: tensors[f"{LAYER}.weight_scale"][3].fill_(-1.0))
    with pytest.raises(CheckpointError, match=r"; the files are damaged or incomplete: make or fetch them again$"):
        gate(GateConfig(num_probe_tokens=4), inputs | {"checkpoint": broken}, tmp_path)


def test_nan_scale_also_shows_in_the_logits(run, damaged):
    _, failed, report = run(damaged(lambda tensors: tensors[f"{LAYER}.weight_scale"].fill_(math.nan)))
    assert {"logits_finite", "held_out_loss", "mean_kl"} <= failed
    assert report["mean_kl"]["value"] is None  # missing is missing, not zero


def test_unquantized_layer_is_found(run, damaged, tiny_model):
    def restore(tensors):
        tensors[f"{LAYER}.weight"] = load_file(tiny_model / "model.safetensors")[f"{LAYER}.weight"]
        del tensors[f"{LAYER}.weight_scale"]

    _, failed, report = run(damaged(restore))
    assert {"targeted_layers_quantized", "size_ratio"} <= failed
    assert report["targeted_layers_quantized"]["value"] == 13
    assert LAYER in report["targeted_layers_quantized"]["detail"]


@pytest.mark.parametrize(("name", "tensor"), [("weight_zero_point", torch.zeros(128, 1)), ("weight_scale", None)])
def test_a_tensor_too_many_or_too_few_is_found(run, damaged, name, tensor):
    def change(tensors):
        tensors.pop(f"{LAYER}.{name}", None)
        if tensor is not None:
            tensors[f"{LAYER}.{name}"] = tensor

    _, failed, report = run(damaged(change))
    assert "targeted_layers_quantized" in failed
    assert LAYER in report["targeted_layers_quantized"]["detail"]


def test_a_config_that_describes_another_format_than_the_recipe_is_found(run, quantize_tiny, tmp_path):
    """Engines read the one, and the weights were made by the other."""
    path = shutil.copytree(quantize_tiny(**RECIPES["int4"]), tmp_path / "other")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 64
    (path / "config.json").write_text(json.dumps(config))
    _, failed, report = run(path)
    assert failed == {"files_readable"}
    assert "another format than recipe.yaml" in report["files_readable"]["detail"]


# The formats that no recipe can choose yet, but whose checkpoints are understood.
FP4 = ["NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4"]


@pytest.fixture
def quantize_fp4(quantize_tiny, monkeypatch):
    def quantize(scheme):
        monkeypatch.setattr("stages.quantize.SUPPORTED", FP4)
        return quantize_tiny(algorithm=Algorithm.rtn, scheme=scheme)

    return quantize


@pytest.mark.parametrize("scheme", FP4)
def test_weights_of_an_fp4_checkpoint_are_what_its_recipe_promises(tiny_model, quantize_fp4, scheme):
    checks = list(check_weights(read_files(tiny_model, quantize_fp4(scheme)), max_size_deviation=0.001))
    assert [check.detail for check in checks if not check.passed] == []
    assert checks[0].value == 14


@pytest.mark.parametrize(("scheme", "value"), [("NVFP4A16", 0), ("MXFP4A16", 255)])
def test_bad_fp4_scale_is_found(tiny_model, quantize_fp4, tmp_path, scheme, value):
    path = shutil.copytree(quantize_fp4(scheme), tmp_path / "damaged")
    tensors = load_file(path / "model.safetensors")
    tensors[f"{LAYER}.weight_scale"].view(torch.uint8)[3, 1] = value
    save_file(tensors, path / "model.safetensors")
    failed = [check for check in check_weights(read_files(tiny_model, path), 0.02) if not check.passed]
    assert [check.name for check in failed] == ["scales_finite_positive"]
    assert LAYER in failed[0].detail


def test_quantized_output_head_is_found(run, damaged):
    def quantize_head(tensors):
        tensors["lm_head.weight_scale"] = torch.ones(384, 1, dtype=torch.bfloat16)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)

    _, failed, report = run(damaged(quantize_head))
    assert "other_tensors_untouched" in failed
    assert "lm_head.weight" in report["other_tensors_untouched"]["detail"]


def test_one_flipped_bit_in_the_embeddings_is_found(run, damaged):
    def flip(tensors):
        tensors["model.embed_tokens.weight"].view(torch.int16)[7, 7] ^= 1

    assert run(damaged(flip))[1] == {"other_tensors_untouched"}


@pytest.mark.parametrize("num_kept", [100, -1])
def test_truncated_file_is_found(run, quantize_tiny, tmp_path, num_kept):
    path = shutil.copytree(quantize_tiny(**RECIPES["fp8"]), tmp_path / "truncated")
    raw = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(raw[:num_kept])
    assert run(path)[1] == {"files_readable"}


def test_lost_recipe_is_found(run, quantize_tiny, tmp_path):
    path = shutil.copytree(quantize_tiny(**RECIPES["fp8"]), tmp_path / "lost")
    (path / "recipe.yaml").unlink()
    assert run(path)[1] == {"files_readable"}


def test_scrambled_weights_fail_a_divergence_threshold_that_healthy_ones_pass(run, quantize_tiny, damaged):
    def scramble(tensors):
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            order = torch.randperm(tensors[name].numel(), generator=torch.Generator().manual_seed(0))
            bits = tensors[name].view(torch.uint8).flatten()[order]
            tensors[name] = bits.reshape(tensors[name].shape).view(torch.float8_e4m3fn)

    limit = 10 * run(quantize_tiny(**RECIPES["fp8"]))[0]["mean_kl"]
    assert not run(quantize_tiny(**RECIPES["fp8"]), max_mean_kl=limit)[1]
    _, failed, report = run(damaged(scramble), max_mean_kl=limit)
    assert "mean_kl" in failed
    assert report["mean_kl"]["expected"] == limit


def behaviour(loss=2.0, answers=()):
    return Behaviour(torch.zeros(1, 1000), loss, list(answers))


@pytest.mark.parametrize(("loss", "passed"), [(2.0, True), (2.5, True), (6.0, False), (9.0, False), (math.nan, False)])
def test_a_checkpoint_may_lose_half_of_what_the_base_knows(loss, passed):
    assert check_loss(behaviour(), behaviour(loss), max_lost=0.5).passed is passed


TALK = list(range(32))


@pytest.mark.parametrize(
    ("answer", "degenerate"),
    [(TALK, False), ([], True), ([5] * 32, True), ([5, 6] * 16, True), ([5, 6, 7, 8] * 8, True), ([9], False)],
)
def test_empty_and_looping_answers_are_degenerate(answer, degenerate):
    assert is_degenerate(answer) is degenerate


def test_only_probes_that_the_base_answers_count():
    loop = [5] * 32
    base = behaviour(answers=[TALK, TALK, loop, loop])
    assert check_answers(base, behaviour(answers=[TALK, loop, loop, loop]), max_degenerate=0.5).passed
    assert not check_answers(base, behaviour(answers=[loop, loop, TALK, TALK]), max_degenerate=0.5).passed
    assert check_answers(behaviour(answers=[loop]), behaviour(answers=[loop]), max_degenerate=0.5).passed


@pytest.mark.dear
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_noise_moves_every_embedding_to_its_neighbour_half_of_them_up(dtype):
    import torch

    from stages.gate.behaviour import _disturb

    before = torch.randn(4, 500, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    after = _disturb(None, None, before)
    assert after.dtype == before.dtype
    assert (after != before).all()
    assert 0.45 < float((after > before).float().mean()) < 0.55
    assert float((after - before).float().abs().max()) <= torch.finfo(before.dtype).eps * float(before.abs().max())
