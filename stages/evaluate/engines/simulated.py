"""Quantized formats that vLLM's CPU build has no sound kernel for, computed with dense weights and rounded inputs.

On a CPU with AVX512 its FP8 product runs at 0.02 GFLOP/s and its INT8 kernel refuses float32; without AVX512 it has no
packed weights.  A dense copy of the checkpoint, every weight dequantized, answers as the format does on any CPU, if the
inputs of its linear layers are rounded where the format says so; it says nothing of its speed or memory.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoints.converted import CONVERTED
from stages.checkpoints.description import describe
from stages.checkpoints.formats import described
from stages.checkpoints.loadable import check_on_cpu
from stages.checkpoints.loaded import check_loads
from stages.checkpoints.opening import load_model
from stages.errors import CheckpointError, ConfigError
from stages.evaluate.config import SIMULATION_VERSION
from stages.evaluate.engines.rounding import METHOD, InputFormat

if TYPE_CHECKING:
    from torch.nn import Module

DENSE = {"method": "dense"}

_COPIED_SUFFIXES, _NOT_COPIED = (".json", ".jinja", ".model", ".txt"), ("config", "model.", "manifest")


def register() -> None:
    """Make the quantization method ``simulated`` known to vLLM in this process; the entry point of its plugins."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import stages.evaluate.engines.rounded_linear  # noqa: F401


def is_simulated(checkpoint: Path, dtype: str) -> bool:
    """Whether the format is simulated for activations of ``dtype`` on this CPU.

    Raises ConfigError for a format that can be neither simulated nor left to a kernel.
    """
    quantization = read_quantization(checkpoint)
    if not quantization or (method := str(quantization.get("quant_method"))) == METHOD:
        return False
    check_on_cpu(method, dtype)
    if method in CONVERTED:
        return dtype == "float32"  # which no kernel of packed weights multiplies
    if method != "compressed-tensors":
        return False
    if not input_formats(quantization) and _is_served(quantization, dtype):
        return False
    _refuse_unknown(quantization)
    return True


def simulation_facts(checkpoint: Path, dtype: str) -> dict[str, Any]:
    """The arithmetic of a dense copy in ``dtype``."""
    inputs = [input_format.facts for input_format in input_formats(read_quantization(checkpoint))]
    return simulated(dtype, inputs, f"float32, version {SIMULATION_VERSION}" if inputs else None)


def simulated(dtype: str, inputs: list[dict[str, Any]], rounding: str | None) -> dict[str, Any]:
    """A simulation's arithmetic: every setting that its answers depend on; no ``inputs`` where none is rounded."""
    return {"method": "simulated", "weights": f"dequantized to {dtype}", "inputs": inputs, "rounding": rounding}


def write_dense_copy(checkpoint: Path, out: Path, dtype: str) -> None:
    """Write ``checkpoint`` into the empty directory ``out``, every weight dequantized, in ``dtype``, named as the
    base's files name them.

    A code times its scale needs 12 to 16 bits of mantissa, so a bfloat16 copy would not be float32's answer.
    Raises ConfigError where the copy is not what its class reads: vLLM passes over tensors that it does not know.
    """
    from safetensors.torch import save_file
    from transformers.core_model_loading import revert_weight_conversion

    model: Any = _dequantized(checkpoint, dtype)
    inputs = _inputs_by_layer(model)
    config = json.loads((checkpoint / "config.json").read_text())
    del config["quantization_config"]
    if any(inputs.values()):
        config["quantization_config"] = {"quant_method": METHOD, "inputs": inputs}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    kept = {name: tensor for name, tensor in model.state_dict().items() if _is_kept(name, inputs) and name not in tied}
    named = {name: tensor.contiguous() for name, tensor in revert_weight_conversion(model, kept).items()}
    save_file(named, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    _check_readable(checkpoint, out)
    for path in checkpoint.iterdir():
        if path.suffix in _COPIED_SUFFIXES and not path.name.startswith(_NOT_COPIED):
            shutil.copy2(path, out / path.name)


def _check_readable(checkpoint: Path, dense_dir: Path) -> None:
    try:
        check_loads(dense_dir, describe(dense_dir))
    except CheckpointError as error:
        owner = describe(dense_dir).architecture
        raise ConfigError(
            f"{checkpoint.name}: its layers are stored otherwise than vLLM reads those of a {owner} (experts apart, "
            "where it wants them together): use engine=transformers"
        ) from error


def read_quantization(checkpoint: Path) -> Mapping[str, Any]:
    """The checkpoint's ``quantization_config``; empty where there is none."""
    config = json.loads((checkpoint / "config.json").read_text())
    quantization: Mapping[str, Any] = config.get("quantization_config") or {}
    return quantization


def input_formats(quantization: Mapping[str, Any]) -> list[InputFormat]:
    """The formats that inputs are rounded to, each once.  Raises ConfigError for one that is not known here."""
    groups = quantization.get("config_groups", {}).values()
    return list(
        dict.fromkeys(map(InputFormat.from_args, filter(None, (group.get("input_activations") for group in groups))))
    )


def _is_served(quantization: Mapping[str, Any], dtype: str) -> bool:
    """Whether vLLM multiplies activations of ``dtype`` by the packed weights on this CPU: by 4-bit ones alone."""
    import torch
    from vllm.platforms import current_platform

    groups = quantization.get("config_groups", {}).values()
    formats = [described(group, group.get("format") or quantization.get("format")) for group in groups]
    is_known = all((each.packing, each.weights.num_bits) == ("pack-quantized", 4) for each in formats)
    if not is_known or dtype == "float32":
        return False
    current_platform.import_kernels()  # or the answer would depend on what this process ran before
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def _refuse_unknown(quantization: Mapping[str, Any]) -> None:
    groups = quantization.get("config_groups", {}).values()
    is_sparse = (quantization.get("sparsity_config") or {}).get("format", "dense") != "dense"
    named = [name for name in ("kv_cache_scheme", "transform_config") if quantization.get(name)]
    named += ["output_activations" for group in groups if group.get("output_activations")]
    if named := named + ["sparsity_config"] * is_sparse:
        raise ConfigError(
            f"the checkpoint's {', '.join(dict.fromkeys(named))} cannot be simulated on a CPU; use engine=vllm_gpu on "
            "a GPU with a kernel for it"
        )


def _dequantized(checkpoint: Path, dtype: str) -> "Module":
    import torch
    from transformers import CompressedTensorsConfig

    settings = CompressedTensorsConfig(dequantize=True)
    model: Module = load_model(checkpoint, dtype=getattr(torch, dtype), quantization_config=settings)
    return model


def _inputs_by_layer(model: "Module") -> dict[str, dict[str, str] | None]:
    """Of every linear layer the format of its input, None where it is not rounded."""
    import torch

    schemes = {name: getattr(module, "quantization_scheme", None) for name, module in model.named_modules()}
    rounded = {
        name: scheme.input_activations for name, scheme in schemes.items() if scheme and scheme.input_activations
    }
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    if others := sorted(rounded.keys() - set(linear)):
        raise ConfigError(f"{others[0]}: only inputs of linear layers can be simulated on a CPU; use engine=vllm_gpu")
    return {
        name: asdict(InputFormat.from_args(rounded[name].model_dump())) if name in rounded else None for name in linear
    }


def _is_kept(tensor: str, inputs: Mapping[str, Mapping[str, str] | None]) -> bool:
    """Weights and biases, and scales of static inputs; no scale, zero point or shape of quantized weights."""
    layer, _, name = tensor.rpartition(".")
    if layer not in inputs or name in ("weight", "bias"):
        return True
    return name == "input_scale" and inputs[layer] is not None
