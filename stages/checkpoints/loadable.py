"""Which forms of quantized checkpoints transformers reads here, and with which arithmetic."""

from collections.abc import Mapping
from typing import Any

from stages.checkpoints.converted import CONVERTED
from stages.errors import ConfigError

# Of compressed-tensors transformers rounds activations as the format says, and AWQ is read as such.  Of FP8 blocks and
# MXFP4 experts it makes dense weights where there is no GPU, and leaves activations as they are.
ROUNDED = ("compressed-tensors",)
DEQUANTIZED = ("fp8", "mxfp4")


def check_method(method: str) -> None:
    """Raise ConfigError, naming what would do, for a form that transformers does not read here."""
    known = (*ROUNDED, *CONVERTED, *DEQUANTIZED)
    if method not in known:
        raise ConfigError(
            f"engine=transformers reads no checkpoint in the form {method}, but in {', '.join(known)}: choose "
            "engine=vllm_gpu"
        )


def check_on_cpu(method: str, dtype: str) -> None:
    """Raise ConfigError for a form that vLLM's CPU build neither has a kernel for nor is given a dense copy of."""
    if method in (*ROUNDED, *CONVERTED) or (method == "gptq" and dtype != "float32"):
        return
    others = "engine=transformers or engine=vllm_gpu" if method in DEQUANTIZED else "engine=vllm_gpu"
    raise ConfigError(f"engine=vllm_cpu reads no checkpoint in the form {method} in {dtype}: choose {others}")


def dense_arguments(quantization: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' loader is told for weights that are dense from the first: with and without a GPU alike."""
    method = quantization.get("quant_method")
    if method not in (*ROUNDED, *DEQUANTIZED):
        return {}
    from transformers import CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

    settings = {"compressed-tensors": CompressedTensorsConfig, "fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
    return {"quantization_config": settings[method](dequantize=True)}


def dequantized_to(quantization: Mapping[str, Any], dtype: str) -> str:
    """The dtype that weights have after they were dequantized for a model of ``dtype``.

    compressed-tensors makes bfloat16 of codes of 4 bits in floating point, whatever the model's own is.
    """
    groups = (quantization.get("config_groups") or {}).values()
    weights = [group.get("weights") or {} for group in groups]
    return "bfloat16" if any((each.get("type"), each.get("num_bits")) == ("float", 4) for each in weights) else dtype
