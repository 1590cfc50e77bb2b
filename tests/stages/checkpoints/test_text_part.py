"""The quantizer meets a model's language part alone, in layers that compressed-tensors knows."""

import pytest

from stages.checkpoints.text_part import make_plain, outside_text, routers

torch = pytest.importorskip("torch")
SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def with_vision():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
    vision = {**SIZES, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


@pytest.fixture(scope="module")
def falcon():
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM(FalconConfig(**SIZES))


def linears(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def test_towers_and_projectors_stay_as_they_are(with_vision):
    kept = set(outside_text(with_vision))
    assert kept and all("vision" in name or "projector" in name for name in kept)
    text = linears(with_vision).keys() - kept
    assert {name.rpartition(".")[2] for name in text} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    }


def test_of_a_model_that_only_reads_nothing_is_kept(falcon):
    assert outside_text(falcon) == []


def test_what_weighs_a_shared_expert_stays_as_it_is(falcon):
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 2}
    mixture = Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **sizes, num_experts_per_tok=1, num_key_value_heads=1))
    assert routers(mixture) == ["model.layers.0.mlp.shared_expert_gate"]
    assert routers(falcon) == []


def test_layers_of_a_class_of_their_own_become_plain_and_compute_the_same(falcon):
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        before = falcon(ids).logits
        assert {type(module).__name__ for module in linears(falcon).values()} == {"FalconLinear", "Linear"}
        make_plain(falcon)
        assert {type(module) for module in linears(falcon).values()} == {torch.nn.Linear}
        assert torch.allclose(falcon(ids).logits, before, atol=1e-5)


def test_a_layer_that_computes_something_else_is_left_alone(falcon):
    class Doubled(torch.nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    falcon.transformer.own = Doubled(16, 16)
    make_plain(falcon)
    assert type(falcon.transformer.own) is Doubled
