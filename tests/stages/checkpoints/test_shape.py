"""The shape read from a config agrees with the weights beside it and with what is known of public models."""

import json

import pytest

from stages.checkpoints.formats import FORMATS, SUPPORTED, format_of
from stages.checkpoints.headers import num_stored_bytes, read_tensor_infos
from stages.checkpoints.shape import ModelShape, kv_cache_gib, linear_layers, num_parameters, weight_gib
from stages.quantize import Algorithm

LLAMA_3_1_8B = ModelShape(
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    tie_word_embeddings=False,
)


def test_shape_agrees_with_the_stored_weights(tiny_model):
    shape = ModelShape.from_config(tiny_model / "config.json")
    infos = read_tensor_infos(tiny_model)
    for index in range(shape.num_layers):
        for layer, size in linear_layers(shape).items():
            assert infos[f"model.layers.{index}.{layer}.weight"].shape == size
    assert weight_gib(shape) == num_stored_bytes(infos) / 2**30


def test_published_parameter_count_of_llama():
    assert num_parameters(LLAMA_3_1_8B) == 8_030_261_248


def test_keys_and_values_of_llama_take_128_kib_a_token():
    assert kv_cache_gib(LLAMA_3_1_8B, num_tokens=8192) == 1.0


def test_tied_embeddings_are_counted_once(tmp_path):
    config = '"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9'
    (tmp_path / "config.json").write_text(
        f'{{{config}, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": true}}'
    )
    assert num_parameters(ModelShape.from_config(tmp_path / "config.json")) == 134_515_008  # SmolLM2-135M


@pytest.mark.parametrize(
    ("scheme", "gib"),
    [("FP8_DYNAMIC", 8.4601), ("W8A16", 8.5591), ("W4A16", 5.3091), ("NVFP4", 5.6138), ("MXFP4A16", 5.4106)],
)
def test_blocks_take_what_their_format_stores_and_the_rest_16_bits(scheme, gib):
    """8B: 6.98e9 weights in blocks, 1.05e9 beside them."""
    num_linear = sum(rows * columns for rows, columns in linear_layers(LLAMA_3_1_8B).values()) * 32
    assert weight_gib(LLAMA_3_1_8B) == pytest.approx(2 * num_parameters(LLAMA_3_1_8B) / 2**30)
    assert num_linear == 6_979_321_856
    assert weight_gib(LLAMA_3_1_8B, FORMATS[scheme]) == pytest.approx(gib, abs=1e-4)


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_weights_of_a_real_checkpoint_take_what_its_shape_promises(tiny_model, quantize_tiny, scheme):
    group_size = 32 if FORMATS[scheme].takes_group_size else None
    checkpoint = quantize_tiny(algorithm=Algorithm.rtn, scheme=scheme, group_size=group_size)
    config = json.loads((checkpoint / "config.json").read_text())
    promised = weight_gib(ModelShape.from_config(tiny_model / "config.json"), format_of(config)) * 2**30
    constants = ("weight_shape", "input_scale")
    infos = {name: info for name, info in read_tensor_infos(checkpoint).items() if not name.endswith(constants)}
    assert promised == num_stored_bytes(infos)
