"""Quantized checkpoints on a CPU: each linear layer of an open engine computes its format's exact definition."""

import json
import os
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.calibrate import CalibrationConfig, calibrate
from stages.errors import ConfigError
from stages.evaluate.config import EngineConfig, EngineKind
from stages.evaluate.engines.native import native_facts
from stages.evaluate.engines.protocol import ScoreRequest
from stages.evaluate.engines.rounding import InputFormat
from stages.evaluate.engines.simulated import is_simulated, write_dense_copy
from stages.evaluate.session import open_engine
from stages.quantize import Algorithm, QuantizeConfig, RecipeConfig, quantize
from tests.quantized import dequantized_awq, save_awq
from tests.stages.evaluate.engines import layer_outputs

ROOT = Path(__file__).parents[4]
LAYER = "model.layers.5"
PARTS = {
    "self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attn.o_proj": ["self_attn.o_proj"],
    "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down_proj": ["mlp.down_proj"],
}
TEXT = "The harbour master counted nine boats before noon. How many were red, and who had painted them?\n" * 6
FORMATS = {
    "FP8_DYNAMIC": InputFormat("e4m3", "token"),
    "W8A8": InputFormat("int8", "token"),
    "FP8": InputFormat("e4m3", "tensor"),
}
FARTHEST = {"float32": 1e-5, "bfloat16": 5e-3}  # relative; that outputs are bfloat16 costs 1.7e-3 alone
PREFIX, NEXT = (403, 1250, 284, 7042), (260, 28)
TOKEN = {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}


@pytest.fixture(scope="module")
def quantized(smollm2, tmp_path_factory):
    """SmolLM2 by round-to-nearest under a scheme."""
    calibration = tmp_path_factory.mktemp("calibration")
    calibrate(CalibrationConfig(num_calibration_samples=2, max_seq_length=64), {"model": smollm2}, calibration)
    made = {}

    def make(scheme, **fields):
        if scheme not in made:
            made[scheme] = tmp_path_factory.mktemp(scheme)
            recipe = RecipeConfig(name=scheme, algorithm=Algorithm.rtn, scheme=scheme, **fields)
            quantize(QuantizeConfig(recipe=recipe), {"model": smollm2, "calibration": calibration}, made[scheme])
        return made[scheme]

    return make


@pytest.fixture(scope="module")
def real_inputs(smollm2):
    """What the linear layers of one decoder layer read while the base model reads a text, by the name of their part."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    seen = {}
    for name in (part for parts in PARTS.values() for part in parts):
        module = model.get_submodule(f"{LAYER}.{name}")
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0][0].clone()))
    with torch.inference_mode():
        model(AutoTokenizer.from_pretrained(smollm2)(TEXT, return_tensors="pt")["input_ids"])
    return seen


def defined_output(checkpoint, name, inputs):
    """Codes by a float32 scale, and everything after that in float64, from the checkpoint's own tensors."""
    weight, static = weight_of(checkpoint, name)
    is_int = json.loads((checkpoint / "config.json").read_text())["quantization_config"]["format"] == "int-quantized"
    largest = 127.0 if is_int else 448.0
    scales = inputs.abs().amax(-1, keepdim=True) / largest if static is None else static.float()
    codes = (inputs / scales).clamp(-largest, largest)
    codes = codes.round() if is_int else codes.to(torch.float8_e4m3fn)
    return (codes.double() * scales.double()) @ weight.T


def output_of_exact_inputs(checkpoint, name, inputs):
    return inputs.double() @ weight_of(checkpoint, name)[0].T


def weight_of(checkpoint, name):
    """Dequantized in float64, and the scale of static inputs."""
    tensors = load_file(checkpoint / "model.safetensors")
    weight, scale, static = (
        tensors.get(f"{LAYER}.{name}.{tensor}") for tensor in ("weight", "weight_scale", "input_scale")
    )
    return weight.double() * scale.double(), static


def distance(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.fixture(scope="module")
def outputs(quantized, real_inputs, tmp_path_factory):
    """Of each scheme the outputs of an open engine's layers in float32.

    The engines open in a process that knows this checkout by PYTHONPATH alone, and none of vLLM's plugins.
    """
    folder = tmp_path_factory.mktemp("outputs")
    save_file(
        {f"{LAYER}.{name}": real_inputs[parts[0]] for name, parts in PARTS.items()}, folder / "inputs.safetensors"
    )
    (folder / "jobs.json").write_text(json.dumps([[str(quantized(scheme)), "float32"] for scheme in FORMATS]))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_PLUGINS": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, layer_outputs.__file__, folder], env=environment, cwd=folder, check=True)
    return {scheme: load_file(folder / f"{number}.safetensors") for number, scheme in enumerate(FORMATS)}


@pytest.mark.vllm
@pytest.mark.parametrize("scheme", FORMATS)
def test_a_linear_layer_of_an_open_engine_computes_its_format_exactly(quantized, real_inputs, outputs, scheme):
    for name, parts in PARTS.items():
        assert_is_format(outputs[scheme][f"{LAYER}.{name}"], quantized(scheme), parts, real_inputs[parts[0]], "float32")


@pytest.mark.vllm
@pytest.mark.parametrize("scheme", FORMATS)
def test_a_linear_layer_in_bfloat16_is_as_near_as_its_dtype_allows(quantized, real_inputs, scheme):
    from stages.evaluate.engines.rounded_linear import RoundedLinearMethod

    for part, *_ in PARTS.values():
        weight, scale = weight_of(quantized(scheme), part)
        layer, method = torch.nn.Module(), RoundedLinearMethod(FORMATS[scheme])
        layer.weight = torch.nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
        layer.input_scale = scale
        method.process_weights_after_loading(layer)
        found = method.apply(layer, real_inputs[part].to(torch.bfloat16))
        assert_is_format(found, quantized(scheme), [part], real_inputs[part], "bfloat16")


def assert_is_format(found, checkpoint, parts, inputs, dtype):
    read = inputs.to(getattr(torch, dtype)).float()
    exact, not_rounded = (
        torch.cat([output(checkpoint, part, read) for part in parts], dim=-1)
        for output in (defined_output, output_of_exact_inputs)
    )
    assert distance(found, exact) < FARTHEST[dtype]
    assert distance(not_rounded, exact) > 5e-3, "a layer that rounds nothing would pass"


@pytest.mark.vllm
def test_packed_weights_answer_in_float32_whatever_this_process_ran_before(smollm2, quantized):
    """Once vLLM's kernels are loaded, on AVX512 there is one for packed weights; it takes no float32."""
    unquantized, arithmetic = logprobs(smollm2, EngineKind.transformers)
    assert arithmetic == {"method": "dense"}
    packed = quantized("W4A16", group_size=64)
    found, arithmetic = logprobs(packed, EngineKind.vllm)
    assert arithmetic["method"] == "simulated" and arithmetic["inputs"] == []
    expected, of_transformers = logprobs(packed, EngineKind.transformers)
    assert of_transformers == arithmetic
    assert found == pytest.approx(expected, abs=1e-3)
    assert expected != pytest.approx(unquantized, abs=0.06)


def logprobs(checkpoint, kind):
    """Of two tokens after a prefix, in float32, and the engine's arithmetic."""
    engine = open_engine(
        checkpoint, EngineConfig(kind=kind, dtype="float32", max_model_len=64, kv_cache_gib=0.1, max_num_seqs=4)
    )
    try:
        scores = engine.loglikelihood([ScoreRequest(PREFIX, (token,)) for token in NEXT])
        return [score.logprob for score in scores], engine.arithmetic
    finally:
        engine.close()


@pytest.mark.vllm
def test_one_process_alone_can_simulate(quantized):
    for ranks in ({"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}):
        with pytest.raises(ConfigError, match="set engine") as caught:
            open_engine(quantized("FP8_DYNAMIC"), EngineConfig(dtype="float32", **ranks))
        assert "\n" not in str(caught.value)


@pytest.mark.vllm
def test_vllm_finds_the_method_by_the_entry_point_in_processes_of_its_own(tmp_path):
    """As in a worker that imported nothing of this project: an installed distribution names the function."""
    ((name, target),) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "vllm.general_plugins"
    ].items()
    installed = tmp_path / "other-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{name}_other = {target}\n")
    script = (
        "from vllm.plugins import load_general_plugins\n"
        "from vllm.model_executor.layers.quantization import get_quantization_config\n"
        "load_general_plugins()\n"
        "print(get_quantization_config('simulated').__name__)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "VLLM_PLUGINS": f"{name}_other"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "SimulatedConfig"


def test_a_format_that_cannot_be_simulated_is_refused_before_an_engine_opens(tmp_path):
    group = {"input_activations": TOKEN, "output_activations": None}
    write = partial(_write_config, tmp_path, quant_method="compressed-tensors", format="float-quantized")
    write(config_groups={"group_0": group}, sparsity_config={"format": "dense"}, transform_config={})
    assert is_simulated(tmp_path, "float32") and is_simulated(tmp_path, "bfloat16")
    for refused in (
        {"config_groups": {"a": group, "b": {"input_activations": TOKEN | {"num_bits": 4}}}},
        {"config_groups": {"a": group | {"output_activations": TOKEN}}},
        {"config_groups": {"a": group}, "kv_cache_scheme": TOKEN},
        {"config_groups": {"a": group}, "sparsity_config": {"format": "sparse-24-bitmask"}},
        {"config_groups": {"a": group}, "transform_config": {"config_groups": {"R1": {}}}},
    ):
        write(**refused)
        with pytest.raises(ConfigError, match="cannot be simulated on a CPU") as caught:
            is_simulated(tmp_path, "float32")
        assert "\n" not in str(caught.value)
    _write_config(tmp_path)
    assert not is_simulated(tmp_path, "float32")


def _write_config(folder, **quantization):
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization} if quantization else {}))


@pytest.mark.parametrize(("scheme", "rounded"), [("W4A16", 0), ("FP8_DYNAMIC", 14)])
def test_a_dense_copy_holds_every_weight_in_the_engines_dtype(quantize_tiny, tmp_path, scheme, rounded):
    fields = {"group_size": 32} if scheme == "W4A16" else {}
    checkpoint = quantize_tiny(algorithm=Algorithm.rtn, scheme=scheme, **fields)
    write_dense_copy(checkpoint, tmp_path, "float32")
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert {name.rpartition(".")[2] for name in tensors} == {"weight"}
    config = json.loads((tmp_path / "config.json").read_text())
    inputs = config.get("quantization_config", {}).get("inputs", {})
    assert sum(value is not None for value in inputs.values()) == rounded
    assert inputs.get("lm_head") is None
    assert (tmp_path / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()


def test_transformers_says_how_it_rounds_inputs(quantize_tiny, tiny_model):
    def arithmetic(checkpoint):
        config = EngineConfig(kind=EngineKind.transformers, dtype="bfloat16", max_model_len=64)
        return open_engine(checkpoint, config).arithmetic

    found = arithmetic(quantize_tiny(algorithm=Algorithm.rtn, scheme="W8A8"))
    assert found["method"] == "simulated" and found["rounding"].startswith("compressed-tensors 0.")
    (inputs,) = found["inputs"]
    assert inputs == {"kind": "int8", "granularity": "token", "largest_code": 127.5, "scale_dtype": "bfloat16"}
    assert arithmetic(tiny_model) == {"method": "dense"}


class MacheteLinearKernel:
    """As vLLM names one."""


def test_the_kernels_of_an_open_model_are_named_and_none_is_missing_not_invented(tmp_path):
    layer, model = torch.nn.Linear(2, 2), torch.nn.Module()
    model.layer = layer
    opened = SimpleNamespace(apply_model=lambda function: [function(model), function(model)])
    assert native_facts(opened, tmp_path) == {"method": "native", "kernels": None}
    layer.scheme = SimpleNamespace(kernel=MacheteLinearKernel(), num_bits=4)
    assert native_facts(opened, tmp_path) == {"method": "native", "kernels": ["MacheteLinearKernel"]}
    assert native_facts(SimpleNamespace(), tmp_path) == {"method": "native", "kernels": None}


def test_a_dense_copy_of_awq_holds_what_its_codes_stand_for(tiny_model: Path, tmp_path: Path) -> None:
    awq, out = save_awq(tiny_model, tmp_path / "awq"), tmp_path / "dense"
    out.mkdir()
    assert is_simulated(awq, "float32")
    write_dense_copy(awq, out, "float32")
    stored, wanted = load_file(out / "model.safetensors"), dequantized_awq(tiny_model)
    assert len(wanted) == 14
    assert all(torch.equal(stored[name], weight) for name, weight in wanted.items())
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
