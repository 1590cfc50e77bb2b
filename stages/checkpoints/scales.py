"""Whether the scales of somebody else's checkpoint are as many as its groups or blocks want, by headers alone."""

import math
from collections.abc import Callable, Mapping

from stages.checkpoints.formats import Quantization
from stages.checkpoints.headers import TensorInfo

Shape = tuple[int, ...]
_Wanted = Callable[[Quantization, Shape], Shape]


def misfit(method: str, weights: Quantization, infos: Mapping[str, TensorInfo]) -> str | None:
    """The first tensor of scales that has another shape than its weight wants, with both; None where all fit.

    Of compressed-tensors the gate foretells every tensor, and of mixtures it is not known which layer has which.
    """
    rule = _RULES.get(method)
    if rule is None:
        return None
    of_weight, of_scales, wanted = rule
    for name, info in infos.items():
        scales = infos.get(f"{name.removesuffix(of_weight)}{of_scales}") if name.endswith(of_weight) else None
        if scales is not None and scales.shape != (shape := wanted(weights, info.shape)):
            return f"{name.removesuffix(of_weight)}{of_scales} has shape {scales.shape}, not {shape}"
    return None


def _blocks(weights: Quantization, shape: Shape) -> Shape:
    if weights.block_structure is None:
        return ()
    rows, columns = weights.block_structure
    return (*shape[:-2], math.ceil(shape[-2] / rows), math.ceil(shape[-1] / columns))


def _awq(weights: Quantization, shape: Shape) -> Shape:
    """Packed along the outputs."""
    return _num_groups(weights, shape[0]), shape[1] * 32 // weights.num_bits


def _gptq(weights: Quantization, shape: Shape) -> Shape:
    """Packed along the inputs."""
    return _num_groups(weights, shape[0] * 32 // weights.num_bits), shape[1]


def _num_groups(weights: Quantization, num_inputs: int) -> int:
    return math.ceil(num_inputs / (weights.group_size or num_inputs))


_RULES: Mapping[str, tuple[str, str, _Wanted]] = {
    "fp8": (".weight", ".weight_scale_inv", _blocks),
    "awq": (".qweight", ".scales", _awq),
    "gptq": (".qweight", ".scales", _gptq),
}
