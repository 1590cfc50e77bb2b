"""What a model expects next, over its whole vocabulary, and how far two models' expectations are apart.

Shapes: T tokens of one text, V entries of the vocabulary.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoints.bf16 import fast_bf16_linear
from stages.checkpoints.opening import load_model
from stages.imports import no_collection

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def open_model(model_dir: Path) -> Iterator[Any]:
    """The model for reading (a compressed one with its activations quantized as when served), unloaded at the end."""
    with no_collection():
        import torch

    with torch.inference_mode(), fast_bf16_linear():
        yield load_model(model_dir, dtype="auto", device_map="auto")
    gc.collect()  # hooks make a compressed model part of reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def next_token_logits(model: Any, input_ids: "Tensor") -> "Tensor":
    """(T, V) on the CPU, in the model's dtype: what it expects after each of ``input_ids`` (T)."""
    return _logits(model, input_ids).cpu()


def next_token_log_probs(model: Any, input_ids: "Tensor") -> "Tensor":
    """Float32 (T, V) on the CPU, in nats: what the model expects after each of ``input_ids`` (T)."""
    return log_probs_of(_logits(model, input_ids)).cpu()


def _logits(model: Any, input_ids: "Tensor") -> "Tensor":
    logits: Tensor = model(input_ids[None].to(model.device)).logits[0]
    return logits


def log_probs_of(logits: "Tensor") -> "Tensor":
    """Float32, in nats, over the last dimension."""
    return logits.float().log_softmax(dim=-1)


def divergences(base_log_probs: "Tensor", log_probs: "Tensor") -> "Tensor":
    """KL divergence (T) in nats from the base's expectation to the other's, over the whole vocabulary."""
    return (base_log_probs.exp() * (base_log_probs - log_probs)).sum(dim=-1)


def agreements(base_log_probs: "Tensor", log_probs: "Tensor") -> "Tensor":
    """Whether both have the same best guess: 0 or 1 (T)."""
    return (base_log_probs.argmax(dim=-1) == log_probs.argmax(dim=-1)).float()


def surprises(log_probs: "Tensor", input_ids: "Tensor") -> "Tensor":
    """Nats (T - 1) by which each token after the first was not expected."""
    return -log_probs[:-1].gather(1, input_ids[1:, None])[:, 0]
