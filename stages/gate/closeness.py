"""How far dequantized weights are from the base's, held against what the format allows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stages.checkpoints.expected import Layer
from stages.checkpoints.intent import Intent
from stages.checkpoints.rows import blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_MULTIPLE = 128  # rows: those of a block of scales, and of zero points that share words
_NEAREST, _MOVED = 1.1, 10.0  # times the error of the nearest codes, which another device may round otherwise at ties
_ARITHMETIC = 0.01  # share of a row's norm that rounding of products takes
_RELATED, _COARSE = 0.25, 0.5
_NUM_FITS = 3


def num_wrong_rows(
    layer: Layer, shape: tuple[int, ...], intent: Intent, read: "Callable[[str, slice | None], Tensor]", base: Any
) -> int:
    """Rows of a layer that are farther from the base's than rounding takes them.

    ``read`` gives stored tensors of the layer by local name, ``base`` the base's weight, both by rows.
    """
    return sum(_num_wrong(intent, *block) for block in _blocks(layer, shape, intent, read, base))


def _blocks(
    layer: Layer, shape: tuple[int, ...], intent: Intent, read: Any, base: Any
) -> Iterator[tuple["Tensor", "Tensor", "Tensor"]]:
    """The base's rows, the dequantized ones, and the nearest that their scales allow, in float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    compressor = BaseCompressor.get_value_from_registry(str(layer.scheme.format.value))
    block_rows = (layer.scheme.weights.block_structure or [1])[0]
    for rows in blocks(shape, 4 * shape[-1], _MULTIPLE * block_rows):
        own = {name: read(name, _rows_of(name, rows, layer)) for name in layer.tensors if name.startswith("weight")}
        weight = base(rows)
        plain = compressor.decompress(_in_float32(own, weight.shape), layer.scheme)
        wanted = weight.float()
        dequantized = plain["weight"].float()[: wanted.shape[0], : wanted.shape[1]]
        if intent.may_rescale:
            wanted = _rescaled(wanted, dequantized)
        nearest = fake_quantize(
            wanted,
            plain["weight_scale"].float(),
            plain.get("weight_zero_point"),
            layer.scheme.weights,
            plain.get("weight_global_scale"),
        )
        yield wanted, dequantized, nearest.float()


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
            base = base * factor
    return base


def _num_wrong(intent: Intent, wanted: "Tensor", dequantized: "Tensor", nearest: "Tensor") -> int:
    norm, error = wanted.norm(dim=1), (dequantized - wanted).norm(dim=1)
    least = (nearest - wanted).norm(dim=1)
    times = _NEAREST if intent.is_nearest else _MOVED
    typical = norm.square().mean().sqrt()
    is_far = ~(error <= times * least + _ARITHMETIC * norm + 1e-4 * typical)
    cosine = (dequantized * wanted).sum(dim=1) / (dequantized.norm(dim=1) * norm).clamp_min(1e-30)
    is_unrelated = (least < _COARSE * norm) & (norm > 1e-3 * typical) & ~(cosine >= _RELATED)
    return int((is_far | is_unrelated).sum())
