"""What a decoder's ``config.json`` says about its size, read without torch, so that a plan can reason about memory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stages.checkpoints.formats import Format
from stages.fields import execution
from stages.units import GIB


@dataclass(kw_only=True, slots=True)
class ModelShape:
    """Shape of a dense Llama-like decoder.  The model's own bytes are its identity; these numbers only describe it."""

    num_layers: int = execution()
    hidden_size: int = execution()
    intermediate_size: int = execution()
    num_attention_heads: int = execution()
    num_key_value_heads: int = execution()
    head_dim: int = execution()
    vocab_size: int = execution()
    tie_word_embeddings: bool = execution()

    @classmethod
    def from_config(cls, config_path: Path) -> Self:
        """Read a Hugging Face ``config.json``; raises KeyError for a model that is not a Llama-like decoder."""
        config = json.loads(config_path.read_text())
        num_heads = config["num_attention_heads"]
        return cls(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_attention_heads=num_heads,
            num_key_value_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
            vocab_size=config["vocab_size"],
            tie_word_embeddings=config.get("tie_word_embeddings", False),
        )


def linear_layers(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """The linear layers of one block by their name inside it, each with its (output, input) size."""
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    query, key_value = (
        shape.num_attention_heads * shape.head_dim,
        shape.num_key_value_heads * shape.head_dim,
    )
    return {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


def num_parameters(shape: ModelShape) -> int:
    """Parameters of the whole model: blocks, embeddings, norms and an untied output head."""
    return _num_linear(shape) + _num_unquantized(shape)


def weight_gib(shape: ModelShape, quantized: Format | None = None) -> float:
    """Memory of the weights: block linears as ``quantized`` stores them, the rest, or all of it, in 16 bits."""
    return (_num_linear_bytes(shape, quantized) + 2 * _num_unquantized(shape)) / GIB


def kv_cache_gib(shape: ModelShape, *, num_tokens: int, num_bits: int = 16) -> float:
    """Memory of keys and values of ``num_tokens`` tokens."""
    per_token = 2 * shape.num_layers * shape.num_key_value_heads * shape.head_dim
    return per_token * num_tokens * num_bits / 8 / GIB


def _num_linear_bytes(shape: ModelShape, quantized: Format | None) -> int:
    if quantized is None:
        return 2 * _num_linear(shape)
    return shape.num_layers * sum(quantized.num_bytes(*size) for size in linear_layers(shape).values())


def _num_linear(shape: ModelShape) -> int:
    return shape.num_layers * sum(rows * columns for rows, columns in linear_layers(shape).values())


def _num_unquantized(shape: ModelShape) -> int:
    num_tables = 1 if shape.tie_word_embeddings else 2
    norms = (2 * shape.num_layers + 1) * shape.hidden_size
    return num_tables * shape.vocab_size * shape.hidden_size + norms
