"""How far dequantized weights are from the base's, held against what the format allows."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.checkpoints.expected import Layer
from stages.checkpoints.intent import Intent
from stages.checkpoints.rows import blocks

if TYPE_CHECKING:
    from torch import Tensor

    Read = Callable[[str, slice | None], Tensor]
    Nearest = Callable[[Tensor], Tensor]

_MULTIPLE = 128  # rows: those of a block of scales, and of zero points that share words
_NEAREST = 1.1  # times the error of the nearest codes, which another device may round otherwise at ties
_ARITHMETIC = 0.01  # share of a row's norm that rounding of products takes
# Where errors make up for each other a row may move by more than its norm, but across the base's, which stays in it: by
# 0.79 to 1.06, at a cosine of 0.44 or more, in 4 bits of SmolLM2 after 4,096 tokens.  What is not the base's has 0.
_SHARE, _COSINE = (0.5, 2.0), 0.1
_COARSE = 0.5  # of a row's norm: a scale that is too wide for it may leave nothing of it
_NUM_FITS, _LEAST_FACTOR = 3, 0.05


def num_wrong_rows(
    layer: Layer, shape: tuple[int, ...], intent: Intent, read: "Read", base: "Callable[[slice | None], Tensor]"
) -> int:
    """Rows of a layer that are farther from the base's than rounding takes them.

    ``read`` gives stored tensors of the layer by local name, ``base`` the base's weight, both by rows.
    """
    return sum(_num_wrong(intent, *block) for block in _blocks(layer, shape, read, base))


def _blocks(
    layer: Layer, shape: tuple[int, ...], read: "Read", base: "Callable[[slice | None], Tensor]"
) -> "Iterator[tuple[Tensor, Tensor, Nearest]]":
    """The base's rows and the dequantized ones, in float32, and what rounds rows to the nearest of their scales.

    On the GPU where there is one: of 8 billion weights a processor core takes minutes.
    """
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    compressor = BaseCompressor.get_value_from_registry(str(layer.scheme.format.value))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    block_rows = (layer.scheme.weights.block_structure or [1])[0]
    for rows in blocks(shape, 4 * shape[-1], math.lcm(_MULTIPLE, block_rows)):
        own = {
            name: read(name, _rows_of(name, rows, layer)).to(device)
            for name in layer.tensors
            if name.startswith("weight")
        }
        weight = base(rows).to(device).float()
        plain = compressor.decompress(_in_float32(own, weight.shape), layer.scheme)
        nearest = partial(
            fake_quantize,
            scale=plain["weight_scale"].float(),
            zero_point=plain.get("weight_zero_point"),
            args=layer.scheme.weights,
            global_scale=plain.get("weight_global_scale"),
        )
        yield weight, plain["weight"].float(), nearest


def _rows_of(name: str, rows: slice | None, layer: Layer) -> slice | None:
    """The part of a stored tensor that belongs to these rows of the weight; None for all of it."""
    num_stored = (*layer.tensors[name].shape, 1)[0]
    if rows is None or name in ("weight_shape", "weight_global_scale") or num_stored == 1:
        return None
    args = layer.scheme.weights
    if name == "weight_zero_point" and layer.scheme.format.value == "pack-quantized":
        return slice(rows.start * args.num_bits // 32, -(-rows.stop * args.num_bits // 32))
    if name in ("weight_scale", "weight_zero_point") and args.block_structure:
        height = args.block_structure[0]
        return slice(rows.start // height, -(-rows.stop // height))
    return rows


def _in_float32(own: dict[str, "Tensor"], shape: Any) -> dict[str, "Tensor"]:
    """Scales in an arithmetic that adds no error of its own; the shape of a block of rows as its own."""
    import torch

    found = dict(own)
    if found["weight_scale"].dtype in (torch.bfloat16, torch.float16):
        found["weight_scale"] = found["weight_scale"].float()
    if "weight_shape" in found:
        found["weight_shape"] = torch.tensor(shape)
    return found


def _rescaled(base: "Tensor", other: "Tensor") -> "Tensor":
    """The base with rows and columns scaled so that it is nearest to the other."""
    for _ in range(_NUM_FITS):
        for dim in (0, 1):
            power = (base * base).sum(dim, keepdim=True)
            factor = (base * other).sum(dim, keepdim=True) / power.clamp_min(1e-30)
            base = base * factor.clamp_min(_LEAST_FACTOR)
    return base


def _num_wrong(intent: Intent, base: "Tensor", dequantized: "Tensor", nearest_to: "Nearest") -> int:
    """Rows that are farther from the base's than the nearest codes, or are not theirs where errors were spread."""
    wanted = _rescaled(base, dequantized) if intent.may_rescale else base
    norm, least = wanted.norm(dim=1), (nearest_to(wanted) - wanted).norm(dim=1)
    typical = norm.square().mean().sqrt()
    if intent.is_nearest:
        error = (dequantized - wanted).norm(dim=1)
        return int((~(error <= _NEAREST * least + _ARITHMETIC * norm + 1e-4 * typical)).sum())
    product = (dequantized * wanted).sum(dim=1)
    share, cosine = product / norm.square(), product / (norm * dequantized.norm(dim=1))
    is_related = (share >= _SHARE[0]) & (share <= _SHARE[1]) & (cosine >= _COSINE)  # not of NaN
    is_judged = (least < _COARSE * norm) & (norm > 1e-3 * typical)
    of_base = base.norm(dim=1)
    is_lost = (dequantized.norm(dim=1) == 0) & (of_base > 0.1 * of_base.square().mean().sqrt())
    return int((is_judged & ~is_related | is_lost).sum())
