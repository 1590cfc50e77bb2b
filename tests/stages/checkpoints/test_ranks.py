"""What tensor parallelism splits: groups and blocks of a format, in layers that are divided by inputs or outputs."""

import pytest

from stages.checkpoints.formats import FORMATS
from stages.checkpoints.ranks import fitting_groups, fitting_ranks, rotates_at_run_time, why_not_split
from stages.checkpoints.shape import ModelShape
from stages.checkpoints.sizes import Heads, LayerSize, ModelSizes


def shape(**sizes):
    found = {
        "num_layers": 2, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 1000, "tie_word_embeddings": False,
    }  # fmt: skip
    return ModelSizes.of_shape(ModelShape(**{**found, **sizes}))


LLAMA_8B, QWEN2_72B = shape(), shape(hidden_size=8192, intermediate_size=29568, num_attention_heads=64)
SMOLLM2 = shape(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64)


def why(name, sizes, num_ranks, layers=None, group_size=None):
    quantized = FORMATS[name].with_group_size(group_size)
    return why_not_split(quantized, sizes, sizes.linears if layers is None else layers, num_ranks)


@pytest.mark.parametrize(
    ("name", "num_ranks", "group_size"),
    [("W4A16", 8, None), ("W4A16", 8, 64), ("FP8_DYNAMIC", 8, None), ("FP8_BLOCK", 8, None), ("NVFP4", 8, None)],
)
def test_what_is_divided_between_groups_and_blocks_is_loaded(name, num_ranks, group_size):
    assert why(name, LLAMA_8B, num_ranks, group_size=group_size) is None


@pytest.mark.parametrize(
    ("name", "sizes", "num_ranks", "said"),
    [
        ("W4A16", QWEN2_72B, 8, "mlp.down_proj has 29568 inputs, 3696 on each of 8 GPUs, no multiple of group 128"),
        ("W4A16", QWEN2_72B, 2, "mlp.down_proj has 29568 inputs, 14784 on each of 2 GPUs, no multiple of group 128"),
        ("MXFP4", QWEN2_72B, 8, "mlp.down_proj has 29568 inputs, 3696 on each of 8 GPUs, no multiple of group 32"),
        ("W4A16", QWEN2_72B, 5, "mlp.down_proj has 29568 inputs, which 5 GPUs cannot share evenly"),
    ],
)
def test_inputs_that_ranks_split_within_a_group_are_named(name, sizes, num_ranks, said):
    assert said in why(name, sizes, num_ranks)


def test_a_format_without_groups_is_divided_anywhere():
    assert why("W8A8", QWEN2_72B, 8) is None and why("FP8_DYNAMIC", QWEN2_72B, 8) is None


def test_blocks_are_kept_whole_by_outputs_too_and_already_in_one_product_of_several_layers():
    """SmolLM2 has 576 and 192 outputs for queries and keys, which vLLM puts beside each other: 4.5 blocks of 128."""
    said = why("FP8_BLOCK", SMOLLM2, 1)
    assert "self_attn.q_proj has 576 outputs, no multiple of block 128" in said and "k_proj has 192" in said
    assert "v_proj" not in said and "down_proj" not in said
    said = why("FP8_BLOCK", shape(intermediate_size=1408), 8)
    assert "mlp.gate_proj has 1408 outputs, 176 on each of 8 GPUs, no multiple of block 128" in said


def test_keys_of_fewer_heads_than_ranks_are_whole_heads_on_each():
    assert why("FP8_BLOCK", LLAMA_8B, 16) is None  # of 8 heads of 128
    assert "k_proj has 512 outputs, 64 on each" in why("FP8_BLOCK", shape(head_dim=64), 16)


def test_fused_products_are_divided_by_what_is_in_them():
    heads = Heads(32, 8, 96)
    layers = {
        "model.layers.0.self_attn.qkv_proj": LayerSize(1, 48 * 96, 4096),
        "model.layers.0.mlp.gate_up_proj": LayerSize(1, 2 * 8192, 4096),
    }
    sizes = ModelSizes(layers, 0, None, False, heads)
    assert why("FP8_BLOCK", sizes, 1) is None
    assert "self_attn.qkv_proj has 768 outputs, 96 on each of 8 GPUs" in why("FP8_BLOCK", sizes, 8)


def test_experts_are_divided_as_other_layers_are():
    layers = {f"model.layers.0.mlp.experts.{index}.down_proj": LayerSize(1, 2048, 768) for index in range(4)}
    sizes = ModelSizes(layers, 0, None, False)
    assert why("W4A16", sizes, 2) is None
    assert why("W4A16", sizes, 4).count("mlp.experts.*.down_proj has 768 inputs, 192 on each of 4 GPUs") == 1


def test_what_is_advised_fits():
    layers, quantized = QWEN2_72B.linears, FORMATS["W4A16"]
    assert fitting_ranks(quantized, QWEN2_72B, layers, 8) == [1]
    groups = list(fitting_groups(quantized, QWEN2_72B, layers, 8))
    assert [each.weights.group_size for each in groups] == [16]
    assert all(why_not_split(each, QWEN2_72B, layers, 8) is None for each in groups)


def test_rotations_that_are_in_the_weights_are_none_at_run_time():
    def transforms(*locations):
        applied = [{"targets": ["Linear"], "location": location} for location in locations]
        return {"transform_config": {"config_groups": {"R": {"type": "hadamard", "apply": applied}}}}

    assert not rotates_at_run_time({}) and not rotates_at_run_time(transforms("weight_input", "weight_output"))
    assert rotates_at_run_time(transforms("weight_input", "input"))
