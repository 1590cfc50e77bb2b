"""The shape read from a config agrees with the weights beside it and with what is known of public models."""

import pytest

from stages.checkpoints.headers import num_stored_bytes, read_tensor_infos
from stages.checkpoints.shape import ModelShape, kv_cache_gib, linear_layers, num_parameters, weight_gib

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


@pytest.mark.parametrize(("num_bits", "group_size"), [(8, None), (4, 128)])
def test_quantized_weights_shrink_by_bits_but_not_below_them(num_bits, group_size):
    linears = 2 * sum(rows * columns for rows, columns in linear_layers(LLAMA_3_1_8B).values()) * 32 / 2**30
    rest = weight_gib(LLAMA_3_1_8B) - linears
    quantized = weight_gib(LLAMA_3_1_8B, num_bits=num_bits, group_size=group_size)
    assert linears * num_bits / 16 + rest < quantized < linears * num_bits / 16 * 1.05 + rest
