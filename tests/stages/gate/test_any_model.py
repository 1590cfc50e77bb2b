"""Mixtures of experts, models that also see, and files that are not what a loader makes of them pass their gate."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.errors import ConfigError
from stages.evaluate.engines.simulated import write_dense_copy
from stages.gate.config import GateConfig, ObserveConfig
from stages.gate.observe import observe
from stages.gate.stage import gate
from stages.gate.weights import check_weights, read_files
from stages.quantize import Algorithm, QuantizeConfig, RecipeConfig, quantize
from tests.stages.gate.checkpoints import VOCABULARY, WEIGHTS, damage, drop, save_llama

pytestmark = pytest.mark.dear
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
EXPERTS = {"num_experts_per_tok": 2}
FP8 = {"algorithm": Algorithm.rtn, "scheme": "FP8_DYNAMIC"}
INT4 = {"algorithm": Algorithm.rtn, "scheme": "W4A16", "group_size": 32}


def mixture(kind, path, **sizes):
    """A random model with four experts a layer."""
    import transformers

    configs = {
        "Mixtral": {"num_local_experts": 4, "tie_word_embeddings": False},
        "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 64, "decoder_sparse_step": 1},
        "GptOss": {"num_local_experts": 4},
    }
    torch.manual_seed(5)
    config = getattr(transformers, f"{kind}Config")(**SIZES | EXPERTS | configs[kind] | sizes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.to(torch.bfloat16).save_pretrained(path)


def seeing(path):
    """A random Gemma 3 with a vision tower."""
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 56, "patch_size": 14}
    text = SIZES | {"query_pre_attn_scalar": 16}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(5)
    transformers.Gemma3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Gemma3ImageProcessor"}))


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """A model by its name, made once, with a tokenizer."""
    from transformers import AutoTokenizer

    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("model") / name
            if name in ("tied", "untied"):
                save_llama(made[name], tiny_model, tie_word_embeddings=name == "tied")
            else:
                seeing(made[name]) if name == "seeing" else mixture(name, made[name])
            AutoTokenizer.from_pretrained(tiny_model).save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture(scope="module")
def quantized(model, tmp_path_factory):
    """A model and its checkpoint of a recipe, made once."""
    made = {}

    def make(source, **recipe):
        key = (str(source), repr(recipe))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("checkpoint")
            config = QuantizeConfig(recipe=RecipeConfig(name="tiny", **recipe))
            quantize(config, {"model": source, "calibration": made[key]}, made[key])
        return made[key]

    return make


def faults(base, checkpoint):
    checks = check_weights(read_files(base, checkpoint), max_size_deviation=0.001)
    return {check.name: check.detail for check in checks if not check.passed}


@pytest.mark.parametrize("recipe", [FP8, INT4], ids=["fp8", "int4"])
@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "GptOss", "seeing"])
def test_the_weights_are_what_the_recipe_makes_of_the_base(model, quantized, name, recipe):
    base = model(name)
    files = read_files(base, quantized(base, **recipe))
    checks = list(check_weights(files, max_size_deviation=0.001))
    assert {check.name: check.detail for check in checks if not check.passed} == {}
    assert checks[0].value == (14 if name == "seeing" else 2 * (4 + 4 * 3))  # attention, and three layers an expert


@pytest.mark.parametrize("name", ["Mixtral", "GptOss", "seeing"])
def test_what_is_loaded_computes_like_the_base(model, quantized, tmp_path, name):
    base = model(name)
    for folder in ("observed", "gate"):
        (tmp_path / folder).mkdir()
    observe(ObserveConfig(num_probe_tokens=4), {"model": base}, tmp_path / "observed")
    inputs = {"base": base, "observed": tmp_path / "observed", "checkpoint": quantized(base, **FP8)}
    metrics = gate(GateConfig(num_probe_tokens=4, max_mean_kl=0.01), inputs, tmp_path / "gate")
    assert 0 < metrics["mean_kl"] < 0.01
    assert metrics["noise_kl"] > 0  # inputs of experts are rounded, too


@pytest.mark.parametrize("name", ["Mixtral", "seeing", "tied"])
def test_a_dense_copy_has_the_tensors_of_the_bases_files(model, quantized, tmp_path, name):
    base = model(name)
    write_dense_copy(quantized(base, **INT4), tmp_path, "float32")
    copied, stored = load_file(tmp_path / WEIGHTS), load_file(base / WEIGHTS)
    assert {key: tensor.shape for key, tensor in copied.items()} == {key: each.shape for key, each in stored.items()}


EXPERT = "model.layers.1.mlp.experts.2.up_proj"


def test_an_expert_that_is_zero_is_named(model, quantized, tmp_path):
    base = model("Qwen3Moe")
    path = damage(quantized(base, **FP8), tmp_path / "damaged", lambda tensors: tensors[f"{EXPERT}.weight"].zero_())
    found = faults(base, path)
    assert found == {"weights_close": f"{EXPERT} is not the base's layer rounded (64 of 64 rows)"}


def test_an_expert_that_is_dropped_is_named(model, quantized, tmp_path):
    base = model("Qwen3Moe")
    path = damage(quantized(base, **FP8), tmp_path / "damaged", drop(f"{EXPERT}.weight"))
    assert faults(base, path)["targeted_layers_quantized"] == f"{EXPERT}.weight is missing"


def test_an_expert_that_is_left_in_16_bits_is_named(model, quantized, tmp_path):
    base = model("Qwen3Moe")

    def restore(tensors):
        del tensors[f"{EXPERT}.weight_scale"]
        tensors[f"{EXPERT}.weight"] = load_file(base / WEIGHTS)[f"{EXPERT}.weight"]

    found = faults(base, damage(quantized(base, **FP8), tmp_path / "damaged", restore))
    assert f"{EXPERT}.weight is BF16, not F8_E4M3" in found["targeted_layers_quantized"]


def test_a_router_that_changed_is_named(model, quantized, tmp_path):
    base, router = model("Qwen3Moe"), "model.layers.0.mlp.gate.weight"
    path = damage(quantized(base, **FP8), tmp_path / "damaged", lambda tensors: tensors[router].mul_(2))
    assert faults(base, path) == {"other_tensors_untouched": f"{router} is not the base's"}


def test_groups_that_do_not_divide_an_expert_are_refused_before_a_weight_is_read(tiny_model, tmp_path, monkeypatch):
    mixture("GptOss", tmp_path / "model", intermediate_size=96)
    monkeypatch.setattr("stages.quantize.load_model", lambda *_, **__: pytest.fail("the work had begun"))
    config = QuantizeConfig(recipe=RecipeConfig(name="wide", **INT4 | {"group_size": 64}))
    with pytest.raises(ConfigError, match=r"recipe wide: group_size 64 .* mlp.experts.\*.down_proj \(96 inputs\)"):
        quantize(config, {"model": tmp_path / "model"}, tmp_path)


# Files that are not what the loader makes of them.


def stored_twice(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def with_leftovers(tensors):
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(16)


def with_wide_norms(tensors):
    for name in [name for name in tensors if "norm" in name]:
        tensors[name] = tensors[name].float()


@pytest.mark.parametrize(
    ("name", "change"), [("tied", stored_twice), ("untied", with_leftovers), ("untied", with_wide_norms)]
)
def test_what_the_loader_drops_or_casts_is_no_fault(model, quantized, tmp_path, name, change):
    base = damage(model(name), tmp_path / "base", change)
    checkpoint = quantized(base, **FP8)
    files, plain = read_files(base, checkpoint), read_files(model(name), quantized(model(name), **FP8))
    assert faults(base, checkpoint) == {}
    assert files.size_ratio == plain.size_ratio  # of what is loaded

    def flip(tensors):
        tensors["model.norm.weight"].view(torch.int16)[3] ^= 1

    damaged = damage(checkpoint, tmp_path / "damaged", flip)
    assert faults(base, damaged) == {"other_tensors_untouched": "model.norm.weight is not the base's"}


def test_a_second_copy_of_the_weights_is_neither_read_nor_counted(model, quantized, tmp_path):
    base = damage(model("untied"), tmp_path / "base", lambda tensors: None)
    save_file({"norm.weight": torch.ones(128)}, base / "consolidated.safetensors")
    checkpoint = quantized(base, **FP8)
    assert faults(base, checkpoint) == {} and not (checkpoint / "consolidated.safetensors").exists()


def test_what_is_no_number_in_the_base_is_told_as_the_bases_fault(model, quantized, tmp_path):
    layer = "model.layers.0.mlp.up_proj"
    base = damage(model("untied"), tmp_path / "base", lambda tensors: None)
    checkpoint = damage(
        quantized(model("untied"), **FP8),
        tmp_path / "damaged",
        lambda tensors: tensors[f"{layer}.weight_scale"][0].fill_(torch.nan),
    )
    assert "take another base" not in faults(base, checkpoint)["scales_finite_positive"]
    spoiled = damage(base, tmp_path / "nan", lambda tensors: tensors[f"{layer}.weight"][0, 0].fill_(torch.nan))
    assert f"{layer}.weight of the base: take another base" in faults(spoiled, checkpoint)["scales_finite_positive"]
