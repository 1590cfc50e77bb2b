"""SmoothQuant's maps are believed by what they do to logits, whatever the architecture is called."""

import pytest
import torch
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from stages.checkpoints.smoothing import check_smoothing
from stages.errors import ConfigError

SIZE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
TOKENS = list(range(3, 90))


def made(model_class, config, dtype=torch.bfloat16):
    torch.manual_seed(0)
    return model_class(config).to(dtype).eval()


def modifier(mappings=None):
    return SmoothQuantModifier(smoothing_strength=0.5, mappings=mappings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (LlamaForCausalLM, LlamaConfig(**SIZE)),
        (CohereForCausalLM, CohereConfig(**SIZE)),  # one norm feeds attention and MLP
        (MixtralForCausalLM, MixtralConfig(**SIZE, num_local_experts=2)),
    ],
)
def test_a_right_map_passes_and_every_weight_is_put_back(model_class, config, dtype):
    model = made(model_class, config, dtype)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    check_smoothing("recipe r", model, modifier(), TOKENS)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_norms_that_scale_by_more_than_their_weight_are_refused():
    """Gemma's scales by 1 + weight, and the one after attention feeds no linear layer."""
    with pytest.raises(
        ConfigError, match=r"not right for Gemma2ForCausalLM: .* changes logits by .*: drop smoothing_str"
    ):
        check_smoothing("recipe r", made(Gemma2ForCausalLM, Gemma2Config(**SIZE)), modifier(), TOKENS)


@pytest.mark.parametrize(
    "readers",
    [["re:.*q_proj", "re:.*k_proj"], ["re:.*gate_proj", "re:.*up_proj"]],
    ids=["a reader is left out", "others read it"],
)
def test_a_map_that_does_not_name_what_reads_a_norm_is_refused(readers):
    wrong = [(readers, "re:.*input_layernorm")]
    model = made(LlamaForCausalLM, LlamaConfig(**SIZE))
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with pytest.raises(ConfigError, match="not right for LlamaForCausalLM"):
        check_smoothing("recipe r", model, modifier(wrong), TOKENS)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_an_architecture_without_a_map_is_refused_by_its_name():
    with pytest.raises(ConfigError, match=r"SmoothQuant has no map for Glm4ForCausalLM, .*: drop smoothing_strength"):
        check_smoothing("recipe r", made(Glm4ForCausalLM, Glm4Config(**SIZE)), modifier(), TOKENS)
