"""Quantized weights against NumPy references written here, and what quantizing must leave alone."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stages.calibrate import CalibrationConfig, calibrate
from stages.checkpoints.formats import FORMATS, SUPPORTED
from stages.checkpoints.shape import ModelShape
from stages.checkpoints.sizes import ModelSizes
from stages.errors import CheckpointError, ConfigError, DataError
from stages.local_files import digest_tree
from stages.quantize import (
    Algorithm,
    QuantizeConfig,
    RecipeConfig,
    check_fits,
    check_group_size,
    needs_calibration,
    quantize,
)

FP8 = {"algorithm": Algorithm.rtn, "scheme": "FP8_DYNAMIC"}
INT8 = {"algorithm": Algorithm.gptq, "scheme": "W8A8"}
INT4 = {"algorithm": Algorithm.gptq, "scheme": "W4A16", "group_size": 32}
SMOLLM2 = ModelShape(
    num_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    tie_word_embeddings=True,
)


# --- References: weights (output, input) in BF16 arithmetic, as llm-compressor computes for a BF16 model. ---


def to_bf16(values):
    """Round float32 to the nearest BF16, ties to even, on the bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def to_e4m3(values):
    """Round to the nearest FP8 E4M3 (3 mantissa bits, smallest exponent -6, largest value 448), ties to even."""
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(values), 2.0**-20))), -6)
    step = 2.0 ** (exponent - 3)
    return np.clip(np.round(values / step) * step, -448, 448)


def round_to_nearest(weight, group_size, half_range, to_grid):
    """Codes and scales by the largest magnitude of each group."""
    groups = weight.reshape(len(weight), -1, group_size)
    scales = to_bf16(np.abs(groups).max(axis=2, keepdims=True) / half_range)
    return to_grid(to_bf16(groups / scales)).reshape(weight.shape), scales[:, :, 0]


def to_integers(num_bits):
    return lambda values: np.clip(np.round(values), -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)


# --- Reading what was written. ---


def read_linears(path):
    """Every block linear as float32 (output, input), with the bare tensors."""
    tensors = load_file(path / "model.safetensors")
    names = sorted(name.removesuffix(".weight") for name in tensors if name.endswith("proj.weight"))
    return {name: tensors[f"{name}.weight"].float().numpy() for name in names}


def read_codes(path, name):
    """Codes and scales (output, groups) of one quantized layer; packed words hold eight offset nibbles each."""
    tensors = load_file(path / "model.safetensors")
    scales = tensors[f"{name}.weight_scale"].float().numpy()
    packed = tensors.get(f"{name}.weight_packed")
    if packed is None:
        return tensors[f"{name}.weight"].float().numpy(), scales
    words = packed.numpy().view(np.uint32)
    nibbles = (words[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 0xF
    return nibbles.reshape(len(words), -1).astype(np.float32) - 8, scales


def dequantize(path, name):
    codes, scales = read_codes(path, name)
    return codes * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)


# --- Round to nearest. ---


@pytest.mark.parametrize(
    ("recipe", "group_size", "half_range", "to_grid"),
    [
        (FP8, None, 448, to_e4m3),
        (INT8 | {"algorithm": Algorithm.rtn}, None, 127.5, to_integers(8)),
        (INT4 | {"algorithm": Algorithm.rtn}, 32, 7.5, to_integers(4)),
    ],
    ids=["fp8_channel", "int8_channel", "int4_group"],
)
def test_round_to_nearest_equals_the_reference_exactly(
    tiny_model, quantize_tiny, recipe, group_size, half_range, to_grid
):
    checkpoint = quantize_tiny(**recipe)
    linears = read_linears(tiny_model)
    assert len(linears) == 14
    for name, weight in linears.items():
        expected_codes, expected_scales = round_to_nearest(weight, group_size or weight.shape[1], half_range, to_grid)
        codes, scales = read_codes(checkpoint, name)
        np.testing.assert_array_equal(scales, expected_scales, err_msg=name)
        np.testing.assert_array_equal(codes, expected_codes, err_msg=name)


def test_mse_observer_clips_where_that_lowers_the_error(tiny_model, quantize_tiny):
    recipe = INT4 | {"algorithm": Algorithm.rtn}
    plain, clipped = quantize_tiny(**recipe), quantize_tiny(**recipe, observer="mse")
    smaller = 0
    for name, weight in read_linears(tiny_model).items():
        errors = [(np.abs(weight - dequantize(path, name)) ** 2.4).sum() for path in (plain, clipped)]
        assert errors[1] <= errors[0] * 1.001, name  # the search itself runs in BF16
        smaller += (read_codes(clipped, name)[1] < read_codes(plain, name)[1]).sum()
    assert smaller > 0


# --- GPTQ. ---


@pytest.fixture(scope="module")
def first_layer_inputs(tiny_model, tiny_calibration):
    """What the first block's query, key and value projections see on the calibration set: (tokens, hidden)."""
    import pyarrow.parquet as pq

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype="auto")
    seen = []
    hook = model.model.layers[0].input_layernorm.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.inference_mode():
        model(torch.tensor(pq.read_table(tiny_calibration / "calibration.parquet")["input_ids"].to_pylist()))
    hook.remove()
    return seen[0].flatten(0, 1).float().numpy()


@pytest.mark.parametrize("recipe", [INT8, INT4, INT4 | {"observer": "mse"}], ids=["int8", "int4", "int4_mse"])
@pytest.mark.parametrize("actorder", ["static", None])
def test_gptq_is_never_worse_than_rounding_on_what_it_saw(
    tiny_model, quantize_tiny, first_layer_inputs, recipe, actorder
):
    gptq = quantize_tiny(**recipe, actorder=actorder)
    nearest = quantize_tiny(**recipe | {"algorithm": Algorithm.rtn})
    for name, weight in read_linears(tiny_model).items():
        if "layers.0.self_attn" not in name or "o_proj" in name:
            continue  # later layers see the error of those before them
        outputs = first_layer_inputs @ weight.T
        gptq_error, nearest_error = (
            np.linalg.norm(outputs - first_layer_inputs @ dequantize(path, name).T) for path in (gptq, nearest)
        )
        assert gptq_error < nearest_error, name


@pytest.fixture
def eight_tokens(tiny_model, tmp_path):
    """A calibration set that gives second moments of 64 inputs no inverse without dampening."""
    calibrate(CalibrationConfig(num_calibration_samples=1, max_seq_length=8), {"model": tiny_model}, tmp_path)
    return {"model": tiny_model, "calibration": tmp_path}


def test_gptq_that_rounded_every_layer_is_refused_by_its_number(eight_tokens, tmp_path):
    recipe = RecipeConfig(name="undamped", **INT8, dampening_frac=0.0)
    with pytest.raises(ConfigError, match="recipe undamped: GPTQ rounded 14 of 14 layers to nearest") as refusal:
        quantize(QuantizeConfig(recipe=recipe), eight_tokens, tmp_path)
    assert "dampening_frac (it is 0)" in str(refusal.value) and "more tokens" in str(refusal.value)


def test_layers_that_gptq_gave_up_on_are_counted(eight_tokens, tmp_path, monkeypatch):
    from llmcompressor.modifiers.gptq import gptq_quantize

    plain = gptq_quantize.factorize_hessian

    def factorize(weight, hessian, dampening, is_rounded):
        if weight.shape[-1] == 128:  # down_proj alone has so many inputs
            is_rounded[:] = True
        return plain(weight, hessian, dampening, is_rounded)

    monkeypatch.setattr(gptq_quantize, "factorize_hessian", factorize)
    metrics = quantize(QuantizeConfig(recipe=RecipeConfig(name="r", **INT8)), eight_tokens, tmp_path)
    assert (metrics["num_gptq_layers"], metrics["num_rounded_layers"]) == (14, 2)


def test_smoothing_moves_scale_from_activations_to_weights_and_keeps_the_product(tiny_model, quantize_tiny):
    plain, smoothed = load_file(tiny_model / "model.safetensors"), quantize_tiny(**INT8, smoothing_strength=0.8)
    norm = "model.layers.0.input_layernorm.weight"
    before, after = plain[norm].float().numpy(), load_file(smoothed / "model.safetensors")[norm].float().numpy()
    assert not np.allclose(before, after)
    name = "model.layers.0.self_attn.q_proj"
    product, weight = dequantize(smoothed, name) * after, read_linears(tiny_model)[name] * before
    assert np.abs(product - weight).max() < 0.05 * np.abs(weight).max()


# --- What must not change. ---


@pytest.mark.parametrize("recipe", [FP8, INT8, INT4], ids=["fp8", "int8", "int4"])
def test_everything_but_block_linears_keeps_its_bytes(tiny_model, quantize_tiny, recipe):
    checkpoint = quantize_tiny(**recipe)
    base, other = (load_file(path / "model.safetensors") for path in (tiny_model, checkpoint))
    untouched = [name for name in base if "proj" not in name]
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= set(untouched)
    for name in untouched:
        assert base[name].dtype == other[name].dtype and torch.equal(base[name], other[name]), name
    for companion in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (checkpoint / companion).read_bytes() == (tiny_model / companion).read_bytes()


def test_a_published_generation_config_that_transformers_refuses_is_kept_as_it_is(tiny_model, tmp_path):
    """It holds a temperature for whoever samples, and says that one does not."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6, "top_p": 0.95}')
    (out := tmp_path / "out").mkdir()
    quantize(
        QuantizeConfig(recipe=RecipeConfig(name="t", **FP8)),
        {"model": model},
        out,
    )
    assert (out / "generation_config.json").read_bytes() == (model / "generation_config.json").read_bytes()


def test_a_config_with_a_padding_token_that_there_is_not_can_be_quantized(tiny_model, tmp_path):
    """As many an older one has it, for no padding; transformers loads that and writes no generation config with it."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"pad_token_id": -1}))
    (model / "generation_config.json").unlink()
    (out := tmp_path / "out").mkdir()
    quantize(QuantizeConfig(recipe=RecipeConfig(name="t", **FP8)), {"model": model}, out)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == config["eos_token_id"]


def test_what_cannot_be_saved_is_refused_before_the_model_is_worked_on(tiny_model, tmp_path, monkeypatch):
    def refuse(self, directory):
        raise ValueError("some parameters are set")

    monkeypatch.setattr("transformers.PreTrainedConfig.save_pretrained", refuse)
    monkeypatch.setattr("llmcompressor.oneshot", lambda **_: pytest.fail("the work had begun"))
    with pytest.raises(DataError, match=r"config\.json cannot be written again .*some parameters are set"):
        quantize(QuantizeConfig(recipe=RecipeConfig(name="t", **FP8)), {"model": tiny_model}, tmp_path)


def test_ignored_layers_stay_in_sixteen_bits(quantize_tiny):
    checkpoint = quantize_tiny(**FP8, ignore=["lm_head", "re:.*layers\\.1\\..*"])
    quantized = {name for name in load_file(checkpoint / "model.safetensors") if name.endswith("weight_scale")}
    assert len(quantized) == 7 and all("layers.0." in name for name in quantized)


@pytest.mark.parametrize("recipe", [FP8, INT8 | {"smoothing_strength": 0.5}, INT4 | {"observer": "mse"}])
def test_the_same_recipe_gives_the_same_bytes(
    tiny_model, tiny_calibration, quantize_tiny, tmp_path, monkeypatch, recipe
):
    first = quantize_tiny(**recipe)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = QuantizeConfig(recipe=RecipeConfig(name="again", **recipe))
    quantize(config, {"model": tiny_model, "calibration": tiny_calibration}, tmp_path / "out")
    assert digest_tree(tmp_path / "out") == digest_tree(first)
    assert not list((tmp_path / "elsewhere").iterdir()), "something was logged into the working directory"
    for path in (tmp_path / "out").glob("*.[jy]*"):
        assert str(tiny_model) not in path.read_text(), f"{path.name} names the place it was made in"


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_every_scheme_gives_a_checkpoint_that_transformers_loads(tiny_model, quantize_tiny, scheme):
    group_size = 32 if FORMATS[scheme].takes_group_size else None
    checkpoint = quantize_tiny(algorithm=Algorithm.rtn, scheme=scheme, group_size=group_size)
    tokens = torch.arange(3, 35)[None]
    with torch.inference_mode():
        base, other = (
            AutoModelForCausalLM.from_pretrained(path, dtype="auto")(tokens).logits.float().log_softmax(-1)
            for path in (tiny_model, checkpoint)
        )
    assert other.isfinite().all()
    assert 0 < (base.exp() * (base - other)).sum(-1).mean() < 0.01


# --- Configs, read without torch. ---


@pytest.mark.parametrize(
    ("recipe", "needed"),
    [
        ({"algorithm": Algorithm.none}, False),
        (FP8, False),
        ({"algorithm": Algorithm.rtn, "scheme": "FP8"}, True),
        (FP8 | {"smoothing_strength": 0.5}, True),
        (INT8, True),
        (INT4, True),
    ],
)
def test_calibration_is_needed_by_whatever_looks_at_activations(recipe, needed):
    assert needs_calibration(RecipeConfig(name="r", **recipe)) is needed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorithm": Algorithm.gptq}, "scheme must be one of"),
        (FP8 | {"scheme": "NVFP4A16"}, "scheme must be one of FP8_DYNAMIC, FP8, W8A8, W8A16, W4A16, W4A16_ASYM; got"),
        (FP8 | {"scheme": "W9A9"}, "scheme must be one of"),
        ({"algorithm": Algorithm.none, "scheme": "W8A8"}, "algorithm=none takes no scheme"),
        (FP8 | {"group_size": 128}, "scales whole channels and takes no group_size"),
        (INT4 | {"group_size": 0}, "at least 1"),
        (INT4 | {"observer": "best"}, "minmax or mse"),
        (INT4 | {"actorder": "group"}, "static or null"),
        (INT8 | {"dampening_frac": -1}, "dampening_frac .* must be 0 or more; got -1"),
        (INT8 | {"dampening_frac": float("nan")}, "dampening_frac .* must be 0 or more; got nan"),
        (INT8 | {"block_size": 0}, "block_size must be at least 1; got 0"),
        (INT8 | {"smoothing_strength": 1.5}, r"in \[0, 1\]"),
    ],
)
def test_contradictory_recipe_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=f"recipe odd: .*{message}"):
        RecipeConfig(name="odd", **fields)


def test_misfit_names_layers_and_sizes_that_fit():
    with pytest.raises(ValueError, match="group_size 128 does not divide") as refusal:
        check_group_size(RecipeConfig(name="w4a16_int", **INT4 | {"group_size": None}), ModelSizes.of_shape(SMOLLM2))
    message = str(refusal.value)
    assert message.startswith("recipe w4a16_int: ") and "\n" not in message
    assert "self_attn.q_proj (576 inputs)" in message and "down_proj" not in message
    assert message.endswith("group sizes that fit: 16, 32, 64")


def test_a_format_with_groups_of_its_own_takes_no_other(monkeypatch):
    monkeypatch.setattr("stages.quantize.SUPPORTED", ("MXFP4A16",))
    fields = {"algorithm": Algorithm.rtn, "scheme": "MXFP4A16"}
    with pytest.raises(ValueError, match="MXFP4A16 scales groups of 32 and takes no group_size"):
        RecipeConfig(name="r", **fields, group_size=16)
    odd = dataclasses.replace(SMOLLM2, hidden_size=592)
    with pytest.raises(
        ValueError, match=r"group_size 32 does not divide self_attn.q_proj .* add these layers to ignore"
    ):
        check_group_size(RecipeConfig(name="r", **fields), ModelSizes.of_shape(odd))


def test_ignored_layers_need_not_fit():
    attention = ["lm_head", "re:.*self_attn.*", "re:.*mlp\\.(gate|up)_proj"]
    check_group_size(
        RecipeConfig(name="r", **INT4 | {"group_size": 128, "ignore": attention}), ModelSizes.of_shape(SMOLLM2)
    )


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.sampled_from([16, 32, 64, 128]))
def test_group_size_is_accepted_exactly_when_it_divides_every_input(hidden, intermediate, heads, group_size):
    shape = ModelShape(
        num_layers=1,
        hidden_size=16 * hidden,
        intermediate_size=16 * intermediate,
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=10,
        tie_word_embeddings=True,
    )
    fits = all(width % group_size == 0 for width in (16 * hidden, 16 * intermediate, 16 * heads))
    recipe = RecipeConfig(name="r", **INT4 | {"group_size": group_size})
    if fits:
        check_group_size(recipe, ModelSizes.of_shape(shape))
    else:
        with pytest.raises(ValueError, match="does not divide"):
            check_group_size(recipe, ModelSizes.of_shape(shape))


def test_a_tied_head_must_stay_as_it_is():
    recipe = RecipeConfig(name="r", **FP8, ignore=[])
    with pytest.raises(ValueError, match="recipe r: keep lm_head in ignore, this model ties it to its embeddings"):
        check_fits(recipe, ModelSizes.of_shape(SMOLLM2))
    check_fits(recipe, ModelSizes.of_shape(dataclasses.replace(SMOLLM2, tie_word_embeddings=False)))
    check_fits(RecipeConfig(name="r"), ModelSizes.of_shape(SMOLLM2))


@pytest.mark.parametrize(
    ("name", "value"),
    [("model.layers.1.mlp.down_proj.weight", float("nan")), ("model.norm.weight", float("inf"))],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_that_are_no_numbers_are_named_before_the_model_is_worked_on(
    tiny_model, tmp_path, monkeypatch, name, value, dtype
):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[name] = tensors[name].to(dtype)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("llmcompressor.oneshot", lambda **_: pytest.fail("the work had begun"))
    with pytest.raises(CheckpointError, match=f"the source's weights hold NaN or infinity .{name}, 1 of "):
        quantize(QuantizeConfig(recipe=RecipeConfig(name="r", **FP8)), {"model": model}, tmp_path)


def test_a_pattern_that_matches_no_layer_is_refused_before_the_model_is_worked_on(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("llmcompressor.oneshot", lambda **_: pytest.fail("the work had begun"))
    config = QuantizeConfig(recipe=RecipeConfig(name="r", **FP8, ignore=["lm_head", "down_proj"]))
    with pytest.raises(
        ConfigError, match=r"recipe r: ignore: 'down_proj' matches no layer; .* write 're:\.\*down_proj'"
    ):
        quantize(config, {"model": tiny_model}, tmp_path)


def test_smoothing_that_changes_the_model_is_refused_before_it_is_worked_on(eight_tokens, tmp_path, monkeypatch):
    from llmcompressor.modifiers.transform.smoothquant import utils

    wrong = [utils.LayerMap(["re:.*gate_proj", "re:.*up_proj"], "re:.*input_layernorm")]
    monkeypatch.setitem(utils.MAPPINGS_REGISTRY, "LlamaForCausalLM", wrong)
    monkeypatch.setattr("llmcompressor.oneshot", lambda **_: pytest.fail("the work had begun"))
    recipe = RecipeConfig(name="smooth", **INT8 | {"algorithm": Algorithm.rtn}, smoothing_strength=0.5)
    with pytest.raises(ConfigError, match=r"recipe smooth: .* not right for LlamaForCausalLM"):
        quantize(QuantizeConfig(recipe=recipe), eight_tokens, tmp_path)


def test_misfit_is_refused_before_any_weight_is_read(tiny_model, tmp_path):
    for name in ("config.json", "model.safetensors"):  # no tokenizer here: going on would fail otherwise
        shutil.copy(tiny_model / name, tmp_path)
    config = QuantizeConfig(recipe=RecipeConfig(name="r", **INT4 | {"group_size": 48}))
    with pytest.raises(ConfigError, match="group_size 48 does not divide"):
        quantize(config, {"model": tmp_path}, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 64
