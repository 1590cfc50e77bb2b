"""Kernels that compute otherwise than the plan or the table of kernels says give no result."""

import json
from types import SimpleNamespace

import pytest

from stages.errors import ConfigError
from stages.evaluate.config import EngineConfig
from stages.evaluate.engines import native
from stages.evaluate.engines.native import check_arithmetic, native_facts

FP8 = {
    "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False},
    "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
}
FP8_BLOCK = {
    "weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128], "dynamic": False},
    "input_activations": {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128, "dynamic": True},
}
INT4 = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "dynamic": False}}
NVFP4_ARGS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": False}
NVFP4 = {"weights": NVFP4_ARGS, "input_activations": {**NVFP4_ARGS, "dynamic": "local"}}
PACKING = {
    id(FP8): "float-quantized",
    id(FP8_BLOCK): "float-quantized",
    id(INT4): "pack-quantized",
    id(NVFP4): "nvfp4-pack-quantized",
}


class FakeLlm:
    """An engine whose layers hold kernels of these classes."""

    def __init__(self, *names):
        self._layers = [SimpleNamespace(scheme=SimpleNamespace(kernel=type(name, (), {})())) for name in names]

    def apply_model(self, look):
        return [look(SimpleNamespace(modules=lambda: self._layers))]


@pytest.fixture
def checkpoint(tmp_path):
    def write(*groups):
        described = {f"group_{index}": {**group, "format": PACKING[id(group)]} for index, group in enumerate(groups)}
        quantization = {"quant_method": "compressed-tensors", "config_groups": described}
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
        return tmp_path

    return write


@pytest.fixture
def on(monkeypatch):
    def there(capability, version="0.26.0"):
        monkeypatch.setattr(native, "compute_capability", lambda: capability)
        return {"engine": "vllm", "engine_version": version, "platform": "cuda"}

    return there


@pytest.mark.parametrize(
    ("group", "kernel", "effective"),
    [
        (FP8, "CutlassFP8ScaledMMLinearKernel", "as it says"),
        (FP8, "HummingFP8ScaledMMLinearKernel", "W8A16"),
        (FP8, "MarlinFP8ScaledMMLinearKernel", "W8A16"),
        (FP8, "NewestLinearKernel", None),
        (NVFP4, "FusedMoEModularKernel", None),
        (NVFP4, "MarlinNvFp4LinearKernel", "W4A16"),
        (NVFP4, "EmulationNvFp4LinearKernel", "as it says"),
        (NVFP4, "FlashInferCutlassNvFp4LinearKernel", "as it says"),
        (INT4, "MacheteLinearKernel", "as it says"),
        (FP8_BLOCK, "CutlassFp8BlockScaledMMKernel", "as it says"),
        (FP8_BLOCK, "DeepGemmFp8BlockScaledMMKernel", "W8A8, scales 2^n"),
    ],
)
def test_what_kernels_make_of_a_format_is_recorded_where_it_is_another(checkpoint, group, kernel, effective):
    facts = native_facts(FakeLlm(kernel), checkpoint(group))
    assert facts["kernels"] == [kernel]
    assert facts.get("effective", "as it says") == effective


def test_of_a_checkpoint_of_several_formats_each_has_kernels_of_its_own(checkpoint):
    path = checkpoint(NVFP4, INT4)
    facts = native_facts(FakeLlm("MacheteLinearKernel", "MarlinNvFp4LinearKernel", "SomeAttentionKernel"), path)
    assert (facts["format"], facts["effective"]) == ("W4A4 and W4A16", "W4A16")


@pytest.mark.parametrize(
    ("group", "kernel", "capability", "planned"),
    [
        (FP8, "CutlassFP8ScaledMMLinearKernel", 9.0, None), (FP8, "HummingFP8ScaledMMLinearKernel", 8.0, "W8A16"),
        (NVFP4, "MarlinNvFp4LinearKernel", 9.0, "W4A16"), (NVFP4, "CutlassNvFp4LinearKernel", 10.0, None),
        (INT4, "MarlinLinearKernel", 9.0, None), (INT4, "MarlinLinearKernel", None, None),
        (NVFP4, "FusedMoEModularKernel", 9.0, "W4A16"),
        (NVFP4, "MarlinNvFp4LinearKernel", 9.0, "as computed by vLLM 0.26.0 on compute capability 9"),
    ],
)  # fmt: skip
def test_what_the_plan_counted_on_is_published(checkpoint, on, group, kernel, capability, planned):
    path = checkpoint(group)
    check_arithmetic(planned, EngineConfig(), on(capability), native_facts(FakeLlm(kernel), path), path)


@pytest.mark.parametrize(
    ("group", "kernel", "capability", "planned", "said"),
    [
        (NVFP4, "MarlinNvFp4LinearKernel", 9.0, None, r"is W4A4, .* as W4A16 \(Marlin.*, not as W4A4, .* gpu=NAME"),
        (NVFP4, "CutlassNvFp4LinearKernel", 10.0, "W4A16", r"computes it as W4A4 .*, not as W4A16, as planned"),
        (FP8, "HummingFP8ScaledMMLinearKernel", 8.0, None, r"is W8A8, .* computes it as W8A16"),
        (INT4, "MacheteLinearKernel", 8.0, None, r"with MacheteLinearKernel here, and the table .* MarlinLinearKernel"),
        (FP8, "NewestLinearKernel", 9.0, None, r"with NewestLinearKernel here, and the table .*: nothing of it"),
        (NVFP4, "EmulationNvFp4LinearKernel", 9.0, None, r"emulates its format \(EmulationNvFp4.*engine.allow_emu"),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused_in_one_line(checkpoint, on, group, kernel, capability, planned, said):
    path = checkpoint(group)
    with pytest.raises(ConfigError, match=said) as refused:
        check_arithmetic(planned, EngineConfig(), on(capability), native_facts(FakeLlm(kernel), path), path)
    assert "\n" not in str(refused.value)


def test_emulation_that_was_allowed_is_published(checkpoint, on):
    path = checkpoint(NVFP4)
    engine = EngineConfig(allow_emulation=True, vllm_args={"linear_backend": "emulation"})
    facts = native_facts(FakeLlm("EmulationNvFp4LinearKernel"), path)
    check_arithmetic(None, engine, on(9.0), facts, path)


def test_of_another_version_the_table_says_nothing(checkpoint, on):
    path = checkpoint(FP8)
    facts = native_facts(FakeLlm("NewestLinearKernel"), path)
    check_arithmetic(None, EngineConfig(), on(9.0, "0.31.0"), facts, path)
    assert facts["effective"] is None


def test_where_nothing_is_native_or_shown_there_is_nothing_to_check(checkpoint, on):
    path = checkpoint(NVFP4)
    for arithmetic in ({"method": "dense"}, {"method": "simulated"}, {"method": "native", "kernels": None}):
        check_arithmetic("W4A16", EngineConfig(), on(10.0), arithmetic, path)
