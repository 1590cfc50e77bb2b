"""What the files of somebody else's quantized checkpoint must look like, beside the model that it was made from.

Nobody here knows what its maker meant to quantize, so what is quantized is told and not judged.  What no recipe may do
is judged: lose a tensor of the base, give it another shape, store what is no number, or a scale that is none.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from stages.checkpoints.description import ModelDescription, describe
from stages.checkpoints.files import first_of
from stages.checkpoints.headers import TensorInfo, digest_of, num_stored_bytes
from stages.checkpoints.loaded import built_on_meta
from stages.checkpoints.quantized import quantized_layers, read_quantized
from stages.checkpoints.rows import Reader, blocks
from stages.gate.artifact import Check

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_BLOCK_SCALE = "_scale_inv"
_MOST_ERROR = 0.1  # relative; rounding to E4M3 makes 0.03
_SCALE = re.compile(r"(_scale(_inv|_2)?|\.scales)$")
_WRAPPERS = re.compile(r"^(?:(?:model|language_model|text_model|transformer)\.)+")
_OTHER_PART = re.compile(r"vision|visual|image|audio|speech|projector|connector|aligner", re.IGNORECASE)


def check_published(base_dir: Path, checkpoint_dir: Path) -> Iterator[Check]:
    """Every check that needs no forward pass.  CheckpointError for files that are damaged or missing."""
    base, checkpoint = describe(base_dir), describe(checkpoint_dir)
    yield Check("files_readable", True)
    yield _check_present(base_dir, base, checkpoint)
    yield from _check_numbers(checkpoint.infos)
    block = read_quantized(checkpoint_dir, checkpoint).groups[0].weights.block_structure
    if block is not None:
        yield _check_close(base, checkpoint, block)
    yield _check_kept(base, checkpoint)
    ratio = num_stored_bytes(dict(checkpoint.infos)) / num_stored_bytes(dict(base.infos))
    yield Check("size_ratio", ratio < 1, ratio, 1.0, "bytes of the checkpoint / bytes of the base, of which it is less")


def _check_present(base_dir: Path, base: ModelDescription, checkpoint: ModelDescription) -> Check:
    """Every tensor that the base loads is there, as it was or quantized; experts may be stored together or apart."""
    stored = {_place(name) for name in checkpoint.infos}
    quantized = {_place(layer) for layer in quantized_layers(checkpoint.infos)}
    experts = {place.partition("experts")[0] for place in stored if "experts" in place}
    heads = set(base.tables[1:]) if base.ties_head else set()
    left = {*built_on_meta(base_dir, base.infos)[1].unread, *heads}
    wanted = [name for name in base.infos if name not in left and not _OTHER_PART.search(name)]
    missing = []
    for name in wanted:
        place = _place(name)
        is_stored = place in stored or place in quantized or place.removesuffix(".weight") in quantized
        is_expert = "experts" in place and place.partition("experts")[0] in experts
        if not is_stored and not is_expert:
            missing.append(name)
    detail = f"{first_of(missing)} of the base missing" if missing else ""
    return Check("tensors_present", not missing, len(missing), 0, detail)


def _check_numbers(infos: Mapping[str, TensorInfo]) -> Iterator[Check]:
    bad_values, bad_scales = [], []
    with Reader({name: (name, info) for name, info in infos.items()}) as opened:
        for name in sorted(infos, key=lambda name: (infos[name].file, infos[name].offset)):
            if _SCALE.search(name):
                bad_scales += [] if _are_scales(opened.read(name)) else [name]
            elif infos[name].dtype in _FLOATS and not _are_finite(opened, name, infos[name]):
                bad_values.append(name)
    detail = f"{first_of(bad_values)} with NaN or infinity" if bad_values else ""
    yield Check("tensors_finite", not bad_values, len(bad_values), 0, detail)
    detail = f"{first_of(bad_scales)} with a scale that is no positive number" if bad_scales else ""
    yield Check("scales_finite_positive", not bad_scales, len(bad_scales), 0, detail)


def _are_finite(opened: Reader, name: str, info: TensorInfo) -> bool:
    """A block of rows at a time."""
    num_row_bytes = 4 * math.prod(info.shape[1:])  # in float32
    return all(bool(opened.read(name, rows).float().isfinite().all()) for rows in blocks(info.shape, num_row_bytes))


def _are_scales(scales: "Tensor") -> bool:
    import torch

    if scales.dtype is torch.uint8:  # E8M0: exponents of two, of which 255 means NaN
        return bool((scales < 255).all())
    scales = scales.float()
    return bool(scales.isfinite().all() and (scales >= 0).all() and (scales > 0).any())


def _check_close(base: ModelDescription, checkpoint: ModelDescription, block: tuple[int, int]) -> Check:
    """Of FP8 in blocks, which rounds to nearest, every weight is near the base's; of other forms nothing is asked."""
    of_base = {_place(name): name for name in base.infos}
    pairs = {
        name: of_base[_place(name)]
        for name, info in checkpoint.infos.items()
        if len(info.shape) == 2 and f"{name}{_BLOCK_SCALE}" in checkpoint.infos and _place(name) in of_base
    }
    with ExitStack() as opened:
        own, wanted = (
            opened.enter_context(Reader({name: (name, info) for name, info in infos.items()}))
            for infos in (checkpoint.infos, base.infos)
        )
        near = {name: _error(own, wanted, name, other, block) <= _MOST_ERROR for name, other in pairs.items()}
    far = [name for name, is_near in near.items() if not is_near]
    detail = f"{first_of(far)} far from the base's weights" if far else f"{len(pairs)} weights compared"
    return Check("weights_close", not far, len(far), 0, detail)


def _error(own: Reader, wanted: Reader, name: str, other: str, block: tuple[int, int]) -> float:
    """Relative to the base's weight, over all of it."""
    codes, weight, scales = (
        reader.read(each).float() for reader, each in ((own, name), (wanted, other), (own, f"{name}{_BLOCK_SCALE}"))
    )
    if codes.shape != weight.shape:
        return math.inf
    for dimension, (size, repeats) in enumerate(zip(codes.shape, block, strict=True)):
        scales = scales.repeat_interleave(repeats, dim=dimension).narrow(dimension, 0, size)
    return float((codes * scales - weight).norm() / weight.norm().clamp(min=1e-30))


def _check_kept(base: ModelDescription, checkpoint: ModelDescription) -> Check:
    """Of the tensors that are no part of a quantized layer the shape must be the base's.

    Values may differ: a method moves factors into norms, or a tool stores another type.  It is counted and said.
    """
    of_base = {_place(name): info for name, info in base.infos.items()}
    quantized = quantized_layers(checkpoint.infos)
    kept = {name: info for name, info in checkpoint.infos.items() if name.removesuffix(".weight") not in quantized}
    pairs = {name: (of_base[_place(name)], info) for name, info in kept.items() if _place(name) in of_base}
    misshapen = [name for name, (wanted, info) in pairs.items() if wanted.shape != info.shape]
    if misshapen:
        detail = f"{first_of(misshapen)} of another shape than the base's"
        return Check("tensors_kept", False, len(misshapen), 0, detail)
    cast = [name for name, (wanted, info) in pairs.items() if wanted.dtype != info.dtype]
    changed = [name for name, pair in pairs.items() if name not in cast and digest_of(pair[0]) != digest_of(pair[1])]
    told = [f"{first_of(changed)} differing from the base's"] if changed else []
    told += [f"{first_of(cast)} stored in another type"] if cast else []
    return Check("tensors_kept", True, len(changed), None, "; ".join(told) or f"{len(pairs)} as in the base")


def _place(name: str) -> str:
    """A tensor's name without the names of wrappers that stand before the language model: tools differ in those."""
    return _WRAPPERS.sub("", name)
