"""Of every format: intact checkpoints pass, and one thing wrong is refused in a line that names it."""

import pytest
import torch

from stages.checkpoints.intent import read_intent
from stages.errors import CheckpointError
from stages.gate.weights import check_weights, read_files
from tests.stages.gate.checkpoints import (
    SCHEMES,
    compress,
    damage,
    drop,
    not_a_number,
    of_two_formats,
    redescribe,
    rotated,
    save_llama,
    spun,
    swap,
    with_fp8_cache,
)

pytestmark = pytest.mark.dear
QUERY, KEY = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"
GATE = "model.layers.0.mlp.gate_proj"
FEW = ("FP8_DYNAMIC", "W4A16")
FEW_IN_SUITE = [scheme if scheme in FEW else pytest.param(scheme, marks=pytest.mark.full) for scheme in SCHEMES]
LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("base") / "llama", tiny_model)


@pytest.fixture(scope="module")
def checkpoint(base, tmp_path_factory):
    """A checkpoint of a format, made once."""
    made = {}

    def make(scheme):
        if scheme not in made:
            out = tmp_path_factory.mktemp("checkpoint") / scheme
            made[scheme] = rotated(base, out) if scheme == "rotated" else compress(base, out, scheme)
        return made[scheme]

    return make


@pytest.fixture
def faults(base):
    """The checks that fail, each with its line."""

    def find(path):
        checks = check_weights(read_files(base, path), max_size_deviation=0.001)
        return {check.name: check.detail for check in checks if not check.passed}

    return find


@pytest.mark.parametrize("scheme", [*SCHEMES, "rotated"])
def test_an_intact_checkpoint_passes_also_where_no_recipe_is_told(faults, checkpoint, tmp_path, scheme):
    assert faults(checkpoint(scheme)) == {}
    assert faults(redescribe(checkpoint(scheme), tmp_path / "published", lambda config: None)) == {}


@pytest.mark.parametrize("make", [with_fp8_cache, of_two_formats, spun])
def test_what_else_published_checkpoints_hold_passes_and_is_named_when_it_is_gone(base, faults, tmp_path, make):
    checkpoint = make(base, tmp_path / "checkpoint")
    assert faults(checkpoint) == {}
    gone = {with_fp8_cache: "model.layers.1.self_attn.k_scale", of_two_formats: f"{QUERY}.weight_scale"}.get(
        make, "model.layers.0.mlp.down_proj.R4_input.weight"
    )
    assert f"{gone} is missing" in str(faults(damage(checkpoint, tmp_path / "damaged", drop(gone))))


def test_what_no_loader_reads_is_no_fault_of_a_published_checkpoint(base, faults, checkpoint, tmp_path):
    def change(tensors):
        tensors[f"{LAYER}.weight_zero_point"] = torch.zeros(128, 1, dtype=torch.int8)  # as old versions stored
        tensors[f"{QUERY}.weight_scale"] = tensors[f"{QUERY}.weight_scale"].float()

    path = damage(checkpoint("FP8_DYNAMIC"), tmp_path / "published", change)
    assert faults(path) == {}
    own = read_files(base, path, read_intent(path, needs_recipe=True))
    assert own.unlike.keys() == {f"{LAYER}.weight_zero_point", f"{QUERY}.weight_scale"}


def test_a_layer_that_is_read_in_neither_may_be_kept(base, checkpoint, tmp_path):
    """Of a model that foretells several tokens at once."""

    def add(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"] = tensors["lm_head.weight"].clone()

    larger, kept = damage(base, tmp_path / "base", add), damage(checkpoint("W4A16"), tmp_path / "kept", add)
    assert read_files(larger, checkpoint("W4A16")).unlike == {}
    assert read_files(larger, kept).unlike == {}
    assert read_files(base, kept).unlike == {"model.layers.2.mlp.up_proj.weight": "is not expected"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_block_of_rows_at_a_time_finds_the_same(faults, checkpoint, tmp_path, monkeypatch, scheme):
    monkeypatch.setattr("stages.checkpoints.rows.BLOCK_BYTES", 2**16)
    assert faults(checkpoint(scheme)) == {}
    path = damage(checkpoint(scheme), tmp_path / "damaged", swap("model.layers.0.mlp.up_proj", GATE))
    assert f"{GATE} is not the base's layer rounded (256 of 256 rows)" in faults(path)["weights_close"]


@pytest.mark.parametrize("scheme", ["FP8_BLOCK", "W4A16_ASYM"])
def test_layers_that_no_block_and_no_word_divides_pass(tiny_model, tmp_path, scheme):
    base = save_llama(tmp_path / "base", tiny_model, num_key_value_heads=1, num_attention_heads=16, head_dim=20)
    files = read_files(base, compress(base, tmp_path / "checkpoint", scheme, ignore=["lm_head", "re:.*o_proj"]))
    assert [check.detail for check in check_weights(files, 0.001) if not check.passed] == []


@pytest.mark.full
def test_every_other_preset_of_compressed_tensors_passes(faults, checkpoint):
    """Also one that a later version brings."""
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    others = PRESET_SCHEMES.keys() - {*SCHEMES, "UNQUANTIZED"}
    assert len(others) > 10
    assert {name: found for name in sorted(others) if (found := faults(checkpoint(name)))} == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scale_that_is_no_number_is_named(faults, checkpoint, tmp_path, scheme):
    found = faults(damage(checkpoint(scheme), tmp_path / "damaged", not_a_number(f"{LAYER}.weight_scale")))
    assert found == {"scales_finite_positive": f"{LAYER}.weight_scale holds a bad scale"}


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "MXFP8"])
def test_a_weight_of_eight_bits_that_is_no_number_is_named(faults, checkpoint, tmp_path, scheme):
    found = faults(damage(checkpoint(scheme), tmp_path / "damaged", not_a_number(f"{LAYER}.weight")))
    assert found["weights_finite"] == f"{LAYER}.weight holds NaN or infinity"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_dropped_tensor_is_named(faults, checkpoint, tmp_path, scheme):
    found = faults(damage(checkpoint(scheme), tmp_path / "damaged", drop(f"{LAYER}.weight_scale")))
    assert found["targeted_layers_quantized"] == f"{LAYER}.weight_scale is missing"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_swapped_queries_and_keys_are_named(faults, checkpoint, tmp_path, scheme):
    found = faults(damage(checkpoint(scheme), tmp_path / "damaged", swap(QUERY, KEY)))
    assert found.keys() == {"weights_close"}
    assert f"{QUERY} is not the base's layer rounded" in found["weights_close"] and KEY in found["weights_close"]


@pytest.mark.parametrize("scheme", FEW_IN_SUITE)
def test_swapped_queries_and_keys_are_named_also_where_channels_may_have_been_rescaled(
    faults, checkpoint, tmp_path, scheme
):
    path = damage(checkpoint(scheme), tmp_path / "damaged", swap(QUERY, KEY))
    (path / "recipe.yaml").unlink()
    assert QUERY in faults(path)["weights_close"]


@pytest.mark.parametrize("scheme", FEW_IN_SUITE)
def test_a_layer_of_zeros_is_named(faults, checkpoint, tmp_path, scheme):
    def change(tensors):
        (name,) = {f"{LAYER}.weight", f"{LAYER}.weight_packed"} & tensors.keys()
        tensors[name].zero_()

    assert faults(damage(checkpoint(scheme), tmp_path / "damaged", change))["weights_close"].startswith(LAYER)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_group_size_is_named(faults, checkpoint, tmp_path, scheme):
    def change(config):
        for group in config["config_groups"].values():
            size = group["weights"]["group_size"]
            group["weights"] |= {"strategy": "group", "group_size": 64 if size != 64 else 32, "block_structure": None}

    path = redescribe(checkpoint(scheme), tmp_path / "damaged", change)
    found = faults(path)
    assert "weight_scale has shape" in found["targeted_layers_quantized"]
    assert len(found["targeted_layers_quantized"]) < 600


def test_a_group_size_other_than_the_recipes_is_named(base, checkpoint, tmp_path):
    path = redescribe(
        checkpoint("W4A16"),
        tmp_path / "damaged",
        lambda config: config["config_groups"]["group_0"]["weights"].update(group_size=64),
    )
    (path / "recipe.yaml").write_bytes((checkpoint("W4A16") / "recipe.yaml").read_bytes())
    with pytest.raises(CheckpointError, match=r"weights.group_size is 64, not 128"):
        read_files(base, path)


def test_a_missing_rotation_is_named(faults, checkpoint, tmp_path):
    found = faults(damage(checkpoint("rotated"), tmp_path / "damaged", _drop_rotations))
    assert "v_input.weight is missing" in found["other_tensors_untouched"]


def test_a_rotation_that_config_json_does_not_tell_of_is_named(faults, checkpoint, tmp_path):
    path = redescribe(checkpoint("rotated"), tmp_path / "damaged", lambda config: config.update(transform_config={}))
    assert "v_input.weight is not expected" in str(faults(path))


def _drop_rotations(tensors):
    for name in [name for name in tensors if "_input.weight" in name]:
        del tensors[name]
