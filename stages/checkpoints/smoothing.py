"""SmoothQuant moves scale from what a norm gives to the layers that read it: whether the model still computes the same.

llm-compressor finds both by their names.  Where a norm feeds other layers than its map says, or scales by more than its
weight, smoothing alone breaks the model; that shows without any calibration.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stages.checkpoints.next_token import next_token_logits
from stages.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_NUM_TOKENS = 64
_LARGEST_CHANGE = 1e-3  # of the largest logit; a power of two is moved without any rounding


def check_smoothing(owner: str, model: Any, modifier: Any, tokens: Sequence[int]) -> None:
    """Raise ConfigError, of ``owner``, unless the layers that ``modifier`` smooths are found, and may be smoothed.

    Every norm is divided by powers of two, the layers that read it are multiplied by them, and the logits of
    ``tokens`` must stay; then all is put back, to the last bit.
    """
    import torch

    ids, kind = torch.tensor(tokens[:_NUM_TOKENS]), type(model).__name__
    mappings = _mappings(owner, model, modifier)
    if not mappings:
        raise ConfigError(
            f"{owner}: llm-compressor's map of SmoothQuant has no layer of {kind}: drop smoothing_strength"
        )
    with torch.no_grad():
        before = next_token_logits(model, ids).float()
        with _smoothed(mappings):
            after = next_token_logits(model, ids).float()
    change, largest = (after - before).abs().max().item(), before.abs().max().item()
    if not change <= _LARGEST_CHANGE * largest:  # also where it is no number
        raise ConfigError(
            f"{owner}: llm-compressor's map of SmoothQuant is not right for {kind}: smoothing by itself "
            f"changes logits by {change / largest:.1%} of the largest: drop smoothing_strength"
        )


def _mappings(owner: str, model: Any, modifier: Any) -> list[Any]:
    """What the modifier itself will find, of its own map for the architecture."""
    finder = modifier.model_copy()
    try:
        finder.mappings = finder._infer_mappings_from_model(model)
        return list(finder._resolve_mappings(model))
    except RuntimeError as error:
        raise ConfigError(
            f"{owner}: SmoothQuant has no map for {type(model).__name__}, whose norms and linear layers llm-compressor "
            "does not know by their names: drop smoothing_strength"
        ) from error


@contextmanager
def _smoothed(mappings: Sequence[Any]) -> Iterator[None]:
    """Smoothed as llm-compressor does it, by scales of 1, 2 and 4 in turn."""
    kept = [_copies(mapping.smooth_layer) for mapping in mappings]
    for mapping in mappings:
        scales = _scales(mapping)
        for layer in mapping.balance_layers:
            _update(layer, "weight", layer.weight * scales)
        for name, values in _copies(mapping.smooth_layer).items():
            _update(mapping.smooth_layer, name, values / (scales if values.ndim == 1 else scales.view(-1, 1)))
    try:
        yield
    finally:
        for mapping, copies in zip(reversed(mappings), reversed(kept), strict=True):
            for layer in mapping.balance_layers:
                _update(layer, "weight", layer.weight / _scales(mapping))
            for name, values in copies.items():
                _update(mapping.smooth_layer, name, values)


def _scales(mapping: Any) -> "Tensor":
    import torch

    weight = mapping.balance_layers[0].weight
    return 2 ** (torch.arange(weight.shape[-1], device=weight.device) % 3).to(weight.dtype)


def _copies(layer: Any) -> "dict[str, Tensor]":
    return {name: getattr(layer, name).clone() for name in ("weight", "bias") if getattr(layer, name, None) is not None}


def _update(layer: Any, name: str, values: "Tensor") -> None:
    from compressed_tensors.offload import update_offload_parameter

    update_offload_parameter(layer, name, values)
