"""What a model's matrices are called: the layers that a recipe can name."""

from collections.abc import Iterator, Mapping
from typing import Any

from stages.checkpoints.headers import TensorInfo

_HEAD = "lm_head"  # not stored where it is tied
_IN_EXPERT = ("gate_proj", "up_proj", "down_proj")
_RENAMED = ("expert", "language_model", "vision")  # parts that a loader calls otherwise than files do


def stored_layers(infos: Mapping[str, TensorInfo]) -> list[str] | None:
    """By the headers of its files; None of a model whose loader may call its layers otherwise."""
    if any(part in name for name in infos for part in _RENAMED):
        return None
    return [*(name.removesuffix(".weight") for name, info in infos.items() if len(info.shape) > 1), _HEAD]


def loaded_layers(model: Any) -> list[str]:
    """Of a model that was loaded; of experts that are kept as one, also the names that they get to be quantized."""
    sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    matrices = [name.removesuffix(".weight") for name, size in sizes.items() if len(size) > 1]
    return [*matrices, *dict.fromkeys(_experts(sizes)), _HEAD]


def _experts(sizes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, size in sizes.items():
        owner, _, _ = name.rpartition(".")
        if len(size) == 3 and owner.endswith("experts"):
            yield from (f"{owner}.{index}.{layer}" for index in range(size[0]) for layer in _IN_EXPERT)
