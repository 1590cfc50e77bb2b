"""A model's layers, memory and context are read from its config and headers, whatever names its architecture gives."""

import math
from pathlib import Path

import pytest

from stages.checkpoints.description import ModelDescription, describe
from stages.checkpoints.shape import ModelShape
from stages.checkpoints.sizes import ModelSizes
from stages.quantize import Algorithm, RecipeConfig, check_fits
from tests.stages.checkpoints.written import LLAMA, TENSORS, write_model

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "tie_word_embeddings": True}
FALCON = {
    "model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "multi_query": True,
    "tie_word_embeddings": True,
}  # fmt: skip


def test_a_llama_s_layers_and_memory_are_those_of_its_shape(tmp_path: Path) -> None:
    shape = ModelShape.from_config(write_model(tmp_path) / "config.json")
    assert shape is not None
    assert describe(tmp_path).sizes == ModelSizes.of_shape(shape)


@pytest.mark.parametrize(
    ("config", "num_elements"),
    [
        (LLAMA, 2 * 2 * 2 * 16),
        ({**LLAMA, "head_dim": 64}, 2 * 2 * 2 * 64),
        ({"model_type": "gemma3", "text_config": LLAMA, "vision_config": {"num_hidden_layers": 9}}, 2 * 2 * 2 * 16),
        (GPT2, 2 * 2 * 4 * 16),
        (FALCON, 2 * 2 * 1 * 16),
        ({**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, 2 * 2 * 2 * 16),
        ({**LLAMA, "kv_lora_rank": 32, "qk_rope_head_dim": 8}, 2 * (32 + 8)),
        ({**LLAMA, "layer_types": ["linear_attention", "full_attention"]}, 2 * 1 * 2 * 16),
        ({**LLAMA, "mamba_d_state": 16}, None),
        ({"model_type": "llama"}, None),
    ],
)
def test_keys_and_values_of_a_token(config: dict[str, object], num_elements: int | None) -> None:
    described = ModelDescription(config)
    assert described.token_elements == num_elements
    memory_gib = ModelSizes({}, 0, num_elements, False).kv_cache_gib(100)
    assert memory_gib == (None if num_elements is None else 2 * num_elements * 100 / 2**30)


@pytest.mark.parametrize(
    ("values", "num_positions"),
    [
        ({}, 512),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 1024),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}}, 512),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}}, 512),
        ({"alibi": True}, None),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": None, "n_positions": 99}, 99),
    ],
)
def test_how_many_tokens_fit_the_context(values: dict[str, object], num_positions: int | None) -> None:
    assert ModelDescription(LLAMA | values).num_positions == num_positions


def test_vision_is_counted_and_no_layer_of_the_language_model(tmp_path: Path) -> None:
    tower = {"vision_tower.encoder.layers.0.mlp.fc1.weight": (32, 16), "multi_modal_projector.linear.weight": (64, 16)}
    with_tower = describe(write_model(tmp_path / "with", LLAMA, TENSORS | tower)).sizes
    alone = describe(write_model(tmp_path / "alone")).sizes
    assert with_tower.linears == alone.linears
    assert with_tower.num_others == alone.num_others + 32 * 16 + 64 * 16


def test_experts_count_whether_they_are_stored_apart_or_together(tmp_path: Path) -> None:
    apart = {f"model.layers.0.mlp.experts.{index}.w1.weight": (32, 64) for index in range(4)}
    together = {"model.layers.0.mlp.experts.w1": (4, 32, 64)}
    plain = describe(write_model(tmp_path / "plain")).sizes.num_parameters
    for name, experts in (("apart", apart), ("together", together)):
        sizes = describe(write_model(tmp_path / name, LLAMA, TENSORS | experts)).sizes
        assert sum(size.num_elements for key, size in sizes.linears.items() if "experts" in key) == 4 * 32 * 64
        assert sizes.num_parameters == plain + 4 * 32 * 64


def test_what_chooses_experts_is_no_layer_to_quantize_but_weighs(tmp_path: Path) -> None:
    experts = {f"model.layers.0.mlp.experts.{index}.up_proj.weight": (32, 64) for index in range(4)}
    router = {"model.layers.0.mlp.gate.weight": (4, 64), "model.layers.0.mlp.shared_expert_gate.weight": (1, 64)}
    without = describe(write_model(tmp_path / "without", LLAMA, TENSORS | experts)).sizes
    found = describe(write_model(tmp_path / "with", LLAMA, TENSORS | experts | router)).sizes
    assert found.linears == without.linears
    assert found.num_parameters - without.num_parameters == 5 * 64


def test_what_no_loader_takes_is_not_counted(tmp_path: Path) -> None:
    unread = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": (16,),
        "model.layers.2.mlp.up_proj.weight": (128, 64),  # a layer more than the config has
        "model.layers.0.self_attn.bias": (1, 1, 8, 8),
    }
    described = describe(write_model(tmp_path / "more", LLAMA, TENSORS | unread))
    assert sorted(described.unread) == sorted(unread)
    assert described.sizes == describe(write_model(tmp_path / "plain")).sizes


def test_the_dtype_is_that_of_most_bytes(tmp_path: Path) -> None:
    assert describe(write_model(tmp_path, dtype="F32")).dtype == "F32"
    assert math.isclose(describe(tmp_path).sizes.weight_gib() * 2**30, 2 * describe(tmp_path).sizes.num_parameters)


@pytest.mark.parametrize(
    ("lacking", "is_seen"),
    [
        ("model.layers.1.mlp.up_proj.weight", True),
        ("model.layers.0.input_layernorm.weight", True),
        ("model.layers.1.self_attn.k_proj.weight", True),
        (None, False),
    ],
)
def test_a_block_that_lacks_what_others_have_is_seen(tmp_path: Path, lacking: str | None, is_seen: bool) -> None:
    tensors = {name: shape for name, shape in TENSORS.items() if name != lacking}
    assert describe(write_model(tmp_path, LLAMA, tensors)).irregular == ([lacking] if is_seen else [])


def test_blocks_of_different_kinds_are_no_damage(tmp_path: Path) -> None:
    dense = {name: shape for name, shape in TENSORS.items() if "layers.1.mlp" not in name}
    experts = {f"model.layers.1.mlp.experts.{index}.up_proj.weight": (32, 64) for index in range(2)}
    assert describe(write_model(tmp_path, LLAMA, dense | experts)).irregular == []


def test_what_is_unusual_about_the_files_is_a_note(tmp_path: Path) -> None:
    assert describe(write_model(tmp_path)).notes == []
    (wide,) = describe(write_model(tmp_path, dtype="F32")).notes
    assert wide == "The base's weights are stored in FP32: its size, and every ratio, is against that."
    unread = {f"model.layers.{index}.self_attn.rotary_emb.inv_freq": (16,) for index in range(2)}
    (more,) = describe(write_model(tmp_path, LLAMA, TENSORS | unread)).notes
    assert more.startswith("model.layers.0.self_attn.rotary_emb.inv_freq and 1 more of the base's files are not loaded")


def test_layers_that_are_stored_the_other_way_round_are_none_that_a_recipe_can_quantize(tmp_path: Path) -> None:
    tensors = {"wte.weight": (384, 64), "h.0.attn.c_attn.weight": (64, 192), "h.0.attn.c_attn.bias": (192,)}
    sizes = describe(write_model(tmp_path, GPT2, tensors)).sizes
    assert sizes.linears == {} and sizes.num_parameters == 384 * 64 + 64 * 192 + 192
    with pytest.raises(ValueError, match="recipe r: no layer of the model's blocks is a linear one"):
        check_fits(RecipeConfig(name="r", algorithm=Algorithm.rtn, scheme="FP8_DYNAMIC"), sizes)
    check_fits(RecipeConfig(name="r"), sizes)


@pytest.mark.parametrize(
    ("whole", "text", "num_tables", "ties"),
    [
        ({"tie_word_embeddings": True}, {}, 2, True),
        ({}, {"tie_word_embeddings": False}, 1, False),
        ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}, 1, True),  # they disagree: the weights say it
        ({}, {}, 1, True),
        ({}, {}, 2, False),
    ],
)
def test_a_head_is_tied_where_the_config_or_else_the_weights_say_it(
    tmp_path: Path, whole: dict[str, object], text: dict[str, object], num_tables: int, ties: bool
) -> None:
    tables = dict.fromkeys(["language_model.model.embed_tokens.weight", "lm_head.weight"][:num_tables], (384, 64))
    config = {"model_type": "gemma3", **whole, "text_config": text}
    assert describe(write_model(tmp_path, config, tables)).ties_head is ties
