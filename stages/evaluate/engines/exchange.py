"""Other weights into an open vLLM, and what must hold before and after: a reload that goes wrong raises nothing.

Tried on a CPU: a checkpoint that lacked half its layers loaded without an error and answered from a mixture.  So the
caller compares the tensors' headers first (``family``); here every parameter is spoiled before the reload, and none
may be found so behind it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.checkpoints.headers import read_tensor_infos
from stages.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class Support(NamedTuple):
    """From which version of vLLM weights behind a kernel can be exchanged, and where that was tried."""

    since: tuple[int, ...]
    tried: str


_EQUAL = "every log-probability and text a fresh engine's"
# By class of kernel.  What is not listed is opened anew: Machete and CUTLASS's FP8 keep no more than parameters, too,
# and Marlin's locks stay where graphs know them since 0.27.1, but nobody has tried.
KERNELS: Mapping[str, Support] = {
    "CutlassInt8ScaledMMLinearKernel": Support((0, 26), f"on an H100, under CUDA graphs: {_EQUAL}"),
    "CPUWNA16LinearKernel": Support((0, 32), f"on a CPU, without graphs: {_EQUAL}"),
}
ON_A_CPU = Support((0, 26), f"on a CPU, without graphs: {_EQUAL}")  # dense products, and formats that are simulated
# Dense decoders of vLLM's ordinary layers, each tried on a CPU.  Experts, state spaces and latent attention keep more
# than parameters.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_REORDERED = "_g_idx"  # an order of columns, which some kernels keep where no reload reaches it
# Scales of the keys and values that an attention layer keeps: parameters that no checkpoint fills, or none may.  They
# have their own names, those of modules' outputs in older checkpoints, or a cache's.
_OF_CACHE = re.compile(
    r"\._?(?:q|k|v|kv|prob)_(?:scale|zero_point)$|[._]output_(?:scale|zero_point)$|\.(?:q|k_cache|v_cache)\.scale$"
)


def check_supported(checkpoint: Path, arithmetic: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raise EngineError, saying why, unless an engine of these facts takes other weights for what computes so."""
    config = json.loads((checkpoint / "config.json").read_text())
    if unknown := [name for name in config["architectures"] if name not in ARCHITECTURES]:
        raise EngineError(f"nobody has tried to exchange weights of {unknown[0]}")
    if any(name.endswith(_REORDERED) for name in read_tensor_infos(checkpoint)):
        raise EngineError("the order of its columns is kept where a reload does not reach it")
    if any(_OF_CACHE.search(name) for name in read_tensor_infos(checkpoint)):
        raise EngineError("nobody has tried to exchange the scales of a cache of keys and values")
    version = facts["engine_version"]
    for kernel, support in _supports(arithmetic, is_cpu=facts["platform"] == "cpu"):
        if support is None:
            raise EngineError(f"nobody has tried to exchange weights behind {kernel}")
        if _parsed(version) < support.since:
            since = ".".join(map(str, support.since))
            raise EngineError(f"{kernel} needs vLLM {since} for it, and this is {version}: tried {support.tried}")


def reload(llm: Any, directory: Path) -> None:
    """Replace the weights of an idle engine by those in ``directory``, which has their headers.

    Raises EngineError, or whatever vLLM does, where they did not all arrive: that engine is of no more use.
    """
    llm.apply_model(spoil)
    llm.collective_rpc(_reload_in_worker, args=(str(directory),))
    if left := sorted({name for names in llm.apply_model(spoiled) for name in names}):
        raise EngineError(f"{len(left)} parameters did not get new weights, first {left[0]}")


def spoil(model: "Module") -> int:
    """Fill every parameter that a checkpoint fills with what none holds; how many there were."""
    parameters = _filled(model)
    for parameter in parameters.values():
        parameter.data.fill_(_spoiled_value(parameter))
    return len(parameters)


def spoiled(model: "Module") -> list[str]:
    """Names of the parameters that are as ``spoil`` left them, by their first values."""
    return [name for name, parameter in _filled(model).items() if _is_spoiled(parameter)]


def _filled(model: "Module") -> dict[str, "Tensor"]:
    return {name: each for name, each in model.named_parameters() if not _OF_CACHE.search(name)}


def _is_spoiled(parameter: "Tensor") -> bool:
    if parameter.numel() == 0:
        return False
    corner = parameter.data[(slice(0, 8),) * parameter.ndim]
    if corner.is_floating_point():
        return bool(corner.float().isnan().all())
    return bool((corner == _spoiled_value(parameter)).all())


def _spoiled_value(parameter: "Tensor") -> float:
    import torch

    if parameter.is_floating_point():
        return float("nan")
    return False if parameter.dtype == torch.bool else torch.iinfo(parameter.dtype).min


def _reload_in_worker(worker: Any, directory: str) -> None:
    """In the process of a model's rank.  vLLM 0.26 sets neither its config nor the model's type around a reload."""
    from vllm.config import set_current_vllm_config
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_current_vllm_config(worker.vllm_config), set_default_torch_dtype(worker.model_config.dtype):
        worker.reload_weights(weights_path=directory)


def _supports(arithmetic: Mapping[str, Any], is_cpu: bool) -> list[tuple[str, Support | None]]:
    if arithmetic["method"] != "native":
        return [("the dense product", ON_A_CPU if is_cpu else None)]
    names = arithmetic["kernels"] or ["a kernel that vLLM does not show"]
    return [(name, KERNELS.get(name)) for name in names]


def _parsed(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))
