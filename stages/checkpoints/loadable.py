"""Which forms of quantized checkpoints transformers reads here, and with which arithmetic."""

from pathlib import Path
from typing import Any

from stages.checkpoints.files import CONFIG
from stages.checkpoints.shape import read_description
from stages.errors import ConfigError

# Its own quantizer of compressed-tensors rounds activations as the format says; of FP8 blocks and MXFP4 experts it
# makes dense weights where there is no GPU, and leaves activations as they are.
ROUNDED = ("compressed-tensors",)
DEQUANTIZED = ("fp8", "mxfp4")


def check_method(method: str) -> None:
    """Raise ConfigError, naming what would do, for a form that transformers does not read here."""
    known = (*ROUNDED, *DEQUANTIZED)
    if method not in known:
        raise ConfigError(
            f"engine=transformers reads no checkpoint in the form {method}, but in {', '.join(known)}: choose "
            "engine=vllm_gpu"
        )


def loading_arguments(checkpoint: Path) -> dict[str, Any]:
    """What ``from_pretrained`` is told, so that a form is read alike with and without a GPU: no kernel is fetched."""
    method = (read_description(checkpoint / CONFIG).get("quantization_config") or {}).get("quant_method")
    if method not in (*ROUNDED, *DEQUANTIZED):
        return {}
    from transformers import CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

    settings = {"compressed-tensors": CompressedTensorsConfig, "fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
    return {"quantization_config": settings[method](dequantize=True)}


def widened(model: Any, dtype: Any) -> Any:
    """Give linear layers that were dequantized to another dtype (FP4 always is to bfloat16) that of the model.

    Returns the dtype that they were dequantized to.
    """
    import torch

    found = dtype
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.is_floating_point() and module.weight.dtype != dtype:
            found = module.weight.dtype
            module.weight.data = module.weight.data.to(dtype)
    return found
