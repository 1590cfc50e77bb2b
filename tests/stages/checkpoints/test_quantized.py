"""What others have quantized is told from config.json and headers alone, in every form that is known."""

from pathlib import Path

import pytest

from stages.checkpoints.checks import check_made_of, check_quantized_path
from stages.checkpoints.description import describe
from stages.errors import CheckpointError
from tests.stages.checkpoints.written import (
    AWQ,
    FP8,
    GPTQ,
    LLAMA,
    MODELOPT,
    NVFP4A16,
    TENSORS,
    quantized_tensors,
    write_model,
    write_quantized,
)

HEAD = "14 linear layers quantized, 1 not (lm_head)"
TOLD = [
    (AWQ, f"awq: weights INT4 (groups of 32, zero points), activations as they are; KV cache as it is; {HEAD}"),
    (
        GPTQ,
        f"gptq: weights INT4 (groups of 32), activations as they are; KV cache as it is; {HEAD}; columns in order of "
        "activations",
    ),
    (
        FP8,
        f"fp8: weights FP8 (blocks of 32 x 32), activations FP8 (groups of 32); KV cache as it is; {HEAD}",
    ),
    (
        NVFP4A16,
        f"compressed-tensors: weights FP4 (groups of 16), activations as they are; KV cache as it is; {HEAD}",
    ),
    (MODELOPT, f"modelopt: weights FP4 (groups of 16), activations FP4 (groups of 16); KV cache FP8; {HEAD}"),
]


@pytest.mark.parametrize(("quantization", "words"), TOLD, ids=lambda value: str(value)[:24])
def test_a_form_is_told_in_one_line(tmp_path: Path, quantization: dict[str, object], words: str) -> None:
    _, quantized = check_quantized_path(write_quantized(tmp_path / "q", quantization))
    assert quantized.words == words
    assert quantized.num_bits == (8 if quantization is FP8 else 4)
    stored = (tmp_path / "q" / "model.safetensors").stat().st_size
    assert stored - 8192 < quantized.num_bytes < stored, "all tensors, headers not counted"


def test_layers_that_are_not_quantized_are_counted_by_their_kind(tmp_path: Path) -> None:
    tensors = quantized_tensors("awq", kept=("lm_head", "self_attn.q_proj", "1.mlp.down_proj"))
    _, quantized = check_quantized_path(write_quantized(tmp_path / "q", AWQ, tensors))
    assert quantized.words.endswith("11 linear layers quantized, 4 not (self_attn.q_proj 2, lm_head, mlp.down_proj)")


def test_a_mixture_of_modelopt_is_told_as_such(tmp_path: Path) -> None:
    layers = {"model.layers.0.mlp.up_proj": "W4A16_NVFP4", "model.layers.0.self_attn.q_proj": "FP8"}
    said = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {name: {"quant_algo": algorithm} for name, algorithm in layers.items()},
    }
    _, quantized = check_quantized_path(write_quantized(tmp_path / "q", said, quantized_tensors("modelopt")))
    assert "weights FP4 (groups of 16), activations as they are; weights FP8 (a scale a tensor)" in quantized.words
    assert quantized.num_bits == 4


@pytest.mark.parametrize(
    ("quantization", "tensors", "message"),
    [
        (
            {"quant_method": "hqq"},
            None,
            "quantized by hqq, a form that is not known here; known are compressed-tensors, ",
        ),
        (AWQ, {name: ("BF16", shape) for name, shape in TENSORS.items()}, "stores no quantized layer"),
        ({"quant_method": "compressed-tensors"}, None, r"cannot be read \(KeyError: 'config_groups'\)"),
        ({}, {name: ("BF16", shape) for name, shape in TENSORS.items()}, "is not quantized: .*any other is a model"),
    ],
)
def test_what_is_no_quantized_checkpoint_is_refused(
    tmp_path: Path, quantization: dict[str, object], tensors: dict[str, tuple[str, tuple[int, ...]]], message: str
) -> None:
    path = write_quantized(tmp_path / "q", quantization, tensors or quantized_tensors("awq"))
    with pytest.raises(CheckpointError, match=message) as refused:
        check_quantized_path(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (FP8 | {"weight_block_size": [64, 64]}, r"mlp.down_proj.weight_scale_inv has shape \(2, 4\), not \(1, 2\)"),
        (AWQ | {"group_size": 64}, r"mlp.down_proj.scales has shape \(4, 64\), not \(2, 64\)"),
    ],
)
def test_scales_of_other_groups_than_the_config_says_are_refused(
    tmp_path: Path, quantization: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"{message}, as quantization_config .* wants") as refused:
        check_quantized_path(write_quantized(tmp_path / "q", quantization))
    assert "\n" not in str(refused.value)


def test_an_adapter_is_refused_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is an adapter for org/base and no model; merge it"):
        check_quantized_path(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["MistralForCausalLM"]},
            "architecture is MistralForCausalLM and the base's LlamaForCausalLM",
        ),
        ({"hidden_size": 128}, "hidden_size is 128 and the base's 64"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3 and the base's 2"),
        ({"vocab_size": 1024}, "vocab_size is 1024 and the base's 384"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, config: dict[str, object], message: str) -> None:
    base = describe(write_model(tmp_path / "base", LLAMA))
    path = write_quantized(tmp_path / "q", FP8, **config)
    model, _ = check_quantized_path(path)
    with pytest.raises(CheckpointError, match=message):
        check_made_of(path, model, base)
