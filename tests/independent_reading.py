"""Quantized checkpoints read without the product: unpacked and dequantized by arithmetic of its own, then held beside
the model they were made from.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

# Relative errors of rounding normally distributed weights to the format, with room for what calibration trades for it.
ERRORS = {"w8a8_fp": (0.015, 0.035), "w8a8_int": (0.003, 0.02), "w4a16_int": (0.05, 0.25)}
_OF_LAYER = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_IN_BLOCK = re.compile(r"(^|\.)(layers|h)\.\d+\.")
_ROUTER = re.compile(r"(mlp|block_sparse_moe|feed_forward)\.(gate|router|shared_expert_gate)\.weight$")
_NOT_TEXT = re.compile("vision|visual|projector|norm")


def read(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, experts that are stored as one taken apart."""
    found: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found |= _apart(name, tensor)
    return found


def linears(base: dict[str, Tensor]) -> set[str]:
    """The layers of a model that a recipe for all linear layers means: those of its text's blocks, but no router."""
    return {
        name.removesuffix(".weight")
        for name, tensor in base.items()
        if tensor.dim() == 2
        and name.endswith(".weight")
        and _IN_BLOCK.search(name)
        and not (_ROUTER.search(name) or _NOT_TEXT.search(name))
    }


def quantized(checkpoint: dict[str, Tensor]) -> set[str]:
    """The layers of a checkpoint that have a scale."""
    return {name.removesuffix(".weight_scale") for name in checkpoint if name.endswith(".weight_scale")}


def others(tensors: dict[str, Tensor], layers: set[str]) -> dict[str, Tensor]:
    """What is not a weight of these layers: a bias of theirs is."""
    own = {f"{layer}.{tensor}" for layer in layers for tensor in _OF_LAYER}
    return {name: tensor for name, tensor in tensors.items() if name not in own}


def relative_error(checkpoint: dict[str, Tensor], layer: str, weight: Tensor) -> float:
    """Of the dequantized weight: the norm of its difference / the norm of the weight."""
    difference = dequantized(checkpoint, layer) - weight.double()
    return float(difference.norm() / weight.double().norm())


def dequantized(checkpoint: dict[str, Tensor], layer: str) -> Tensor:
    """A layer's weights as the checkpoint means them, in FP64 (rows, columns)."""
    scale = checkpoint[f"{layer}.weight_scale"].double()
    if (codes := checkpoint.get(f"{layer}.weight")) is None:
        rows, columns = checkpoint[f"{layer}.weight_shape"].tolist()
        codes = _unpacked(checkpoint[f"{layer}.weight_packed"], columns)[:rows]
    codes = codes.double()
    return codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], dim=1)


def _unpacked(words: Tensor, columns: int) -> Tensor:
    """Signed codes of 4 bits, eight to a word from its lowest bits on, each stored 8 too high."""
    codes = [(words >> (4 * place)) & 15 for place in range(8)]
    return torch.stack(codes, dim=-1).flatten(1)[:, :columns] - 8


def _apart(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """GPT-OSS stores its experts as one tensor a kind, transposed, gate and up in turn."""
    prefix, _, kind = name.rpartition(".experts.")
    if not prefix or kind.removesuffix("_bias") not in ("gate_up_proj", "down_proj"):
        return {name: tensor}
    is_bias = kind.endswith("_bias")
    found = {}
    for number, expert in enumerate(tensor if is_bias else tensor.transpose(1, 2)):
        parts = {"down_proj": expert} if "down" in kind else {"gate_proj": expert[::2], "up_proj": expert[1::2]}
        for part, values in parts.items():
            found[f"{prefix}.experts.{number}.{part}.{'bias' if is_bias else 'weight'}"] = values
    return found
