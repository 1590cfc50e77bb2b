"""Every row of the table against compressed-tensors: its presets, what it writes into a config, and what it stores."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from compressed_tensors.compressors.base import compress_module
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from safetensors.torch import save_file

from stages.checkpoints.formats import FORMATS, SUPPORTED, format_of
from stages.checkpoints.headers import read_tensor_infos
from stages.errors import CheckpointError
from stages.serving.ceilings import PRODUCTS

TORCH = {None: None, "F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}


def scheme_of(name, **weights):
    """The library's scheme for linear layers, its weights changed."""
    scheme = preset_name_to_scheme(name, ["Linear"])
    scheme.weights = scheme.weights.model_copy(update=weights)
    return scheme


def config_of(name, packing=None, **weights):
    """``config.json`` of a checkpoint of this preset, as the library writes it."""
    scheme = scheme_of(name, **weights)
    packing = packing or infer_module_format(torch.nn.Linear, scheme).value
    described = QuantizationConfig(config_groups={"group_0": scheme}, format=packing).model_dump(mode="json")
    return {"quantization_config": json.loads(json.dumps(described))}


def test_every_preset_of_the_library_has_a_row():
    quantizing = {name for name, scheme in PRESET_SCHEMES.items() if scheme}
    assert FORMATS.keys() == quantizing
    assert PRESET_SCHEMES.keys() - quantizing == {"UNQUANTIZED"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_says_what_the_library_says(name):
    scheme, row = preset_name_to_scheme(name, ["Linear"]), FORMATS[name]
    for ours, theirs in ((row.weights, scheme.weights), (row.activations, scheme.input_activations)):
        assert (ours is None) == (theirs is None)
        if theirs is None:
            continue
        assert (ours.num_bits, ours.type, ours.strategy) == (theirs.num_bits, theirs.type, theirs.strategy)
        assert (ours.group_size, ours.symmetric, ours.dynamic) == (theirs.group_size, theirs.symmetric, theirs.dynamic)
        assert (ours.block_structure and list(ours.block_structure)) == theirs.block_structure
        assert TORCH[ours.scale_dtype] == theirs.scale_dtype
    assert scheme.output_activations is None
    assert row.packing == infer_module_format(torch.nn.Linear, scheme).value
    assert row.needs_calibration == QuantizationConfig(config_groups={"all": scheme}).requires_calibration_data()


@pytest.mark.parametrize("name", FORMATS)
def test_a_config_written_by_the_library_is_read_as_its_row(name):
    assert format_of(config_of(name)) == FORMATS[name]


@pytest.mark.parametrize("rows_columns", [(256, 512), (136, 384)], ids=["even", "odd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_is_stored_as_the_row_says_to_the_byte(tmp_path, name, dtype, rows_columns):
    layer = torch.nn.Linear(*reversed(rows_columns), bias=False, dtype=dtype)
    initialize_module_for_quantization(layer, preset_name_to_scheme(name, ["Linear"]))
    for parameter, tensor in layer.named_parameters():
        if parameter.endswith("scale"):
            tensor.data.fill_(1)
    compress_module(layer)
    save_file({key: tensor.contiguous() for key, tensor in layer.state_dict().items()}, tmp_path / "a.safetensors")
    stored = read_tensor_infos(tmp_path)
    row = FORMATS[name]
    expected = row.stored_tensors(*rows_columns, {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype])
    assert {key: (info.dtype, info.shape, info.num_bytes) for key, info in stored.items()} == {
        key: (tensor.dtype, tensor.shape, tensor.num_bytes) for key, tensor in expected.items()
    }
    constants = {"weight_shape", "weight_global_scale", "input_scale", "input_global_scale"}
    counted = sum(info.num_bytes for key, info in stored.items() if key not in constants)
    assert row.num_bytes(*rows_columns, "BF16" if dtype is torch.bfloat16 else "F32") == counted


@pytest.mark.parametrize(
    ("name", "num_bits"),
    [
        ("FP8_DYNAMIC", 8 + 16 / 4096),
        ("FP8_BLOCK", 8 + 16 / 128**2),
        ("W4A16", 4 + 16 / 128),
        ("W4A16_ASYM", 4 + 20 / 128),
        ("W4AFP8", 8 + 16 / 128),  # a byte a code
        ("NVFP4", 4 + 8 / 16),
        ("MXFP4", 4 + 8 / 32),
        ("MXFP8", 8 + 8 / 32),
    ],
)
def test_bits_of_a_weight_with_its_share_of_a_scale(name, num_bits):
    assert FORMATS[name].num_bytes(1024, 4096) * 8 / (1024 * 4096) == pytest.approx(num_bits)


@pytest.mark.parametrize(
    ("name", "arithmetic"),
    [("W4A16", None), ("NVFP4A16", None), ("W8A8", "int8"), ("FP8", "fp8"), ("W4AFP8", "fp8"), ("MXFP4", "fp4")],
)
def test_layers_multiply_in_the_type_of_their_activations(name, arithmetic):
    assert FORMATS[name].arithmetic == arithmetic


def test_the_rate_of_every_product_that_a_recipe_can_ask_for_is_measured():
    floats = {row.arithmetic for row in FORMATS.values() if row.weights.type == "float"}
    asked = {FORMATS[name].arithmetic for name in SUPPORTED}
    assert (floats | asked) - {None} <= PRODUCTS.keys()


def test_a_group_size_of_a_checkpoint_is_its_own():
    found = format_of(config_of("W4A16", group_size=32))
    assert found == FORMATS["W4A16"].with_group_size(32) != FORMATS["W4A16"]
    assert found.stored_tensors(64, 128)["weight_scale"].shape == (64, 4)
    assert FORMATS["W4A16"].with_group_size(None) is FORMATS["W4A16"]


def test_older_checkpoints_name_no_type_of_scales():
    """Neither versions before 0.12 nor channels said as groups of -1 are read as something else."""
    assert format_of(config_of("NVFP4A16", "nvfp4-pack-quantized", scale_dtype=None)) == FORMATS["NVFP4A16"]
    assert format_of(config_of("W8A8", group_size=-1)) == FORMATS["W8A8"]


def test_an_unquantized_checkpoint_has_no_format():
    assert format_of({"hidden_size": 64}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "'gptq' is not compressed-tensors"),
        ({"config_groups": {}}, "0 weight formats"),
        ({"format": "marlin-24"}, "'marlin-24'"),
        ({"config_groups": {"group_0": {"weights": None}}}, "no weight format known"),
        ({"config_groups": {"group_0": {"weights": {"type": "int"}}}}, "'num_bits'"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(change, message):
    config = config_of("W8A8")
    config["quantization_config"] |= change
    with pytest.raises(CheckpointError, match=message) as refusal:
        format_of(config)
    assert "\n" not in str(refusal.value)


def test_several_formats_in_one_checkpoint_are_refused():
    config = config_of("W8A8")
    groups = config["quantization_config"]["config_groups"]
    groups["same"] = groups["group_0"]
    assert format_of(config) == FORMATS["W8A8"]
    groups["other"] = config_of("FP8_DYNAMIC")["quantization_config"]["config_groups"]["group_0"]
    with pytest.raises(CheckpointError, match="2 weight formats"):
        format_of(config)


def test_the_table_is_read_without_torch():
    code = "import sys, stages.checkpoints.formats; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_row_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FORMATS["W8A8"].packing = "pack-quantized"
