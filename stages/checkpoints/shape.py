"""What a decoder's ``config.json`` says about its size, read without torch, so that a plan can reason about memory."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from stages.checkpoints.formats import Format
from stages.errors import DataError, one_line
from stages.fields import execution
from stages.units import GIB

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


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

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.type is int and getattr(self, each.name) < 1:
                raise ValueError(f"model.shape.{each.name} must be at least 1; got {getattr(self, each.name)}")

    @classmethod
    def from_config(cls, config_path: Path) -> Self | None:
        """Read a Hugging Face ``config.json``; None for a model that is no dense decoder like Llama.

        Raises DataError for a file that is damaged.
        """
        config = read_description(config_path)
        if any(name not in config for name in _SIZES) or any(name in config for name in _EXPERTS):
            return None
        sizes = {name: config[name] for name in _SIZES} | {
            name: config[name] for name in ("num_key_value_heads", "head_dim") if config.get(name) is not None
        }
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise DataError(f"{config_path}: {name} is {size!r:.40} and not a number of at least 1: fetch it again")
        num_heads = sizes["num_attention_heads"]
        return cls(
            num_layers=sizes["num_hidden_layers"],
            hidden_size=sizes["hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            num_attention_heads=num_heads,
            num_key_value_heads=sizes.get("num_key_value_heads", num_heads),
            head_dim=sizes.get("head_dim", sizes["hidden_size"] // num_heads),
            vocab_size=sizes["vocab_size"],
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        )


def read_description(path: Path) -> dict[str, Any]:
    """What a JSON file beside a checkpoint's weights says; raises DataError for one that is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path} cannot be read, it is no JSON ({where}: {error.msg}): fetch it again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): fetch it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object: fetch it again")
    return found


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
    return _num_linear(shape) + num_unquantized(shape)


def weight_gib(shape: ModelShape, quantized: Format | None = None) -> float:
    """Memory of the weights: block linears as ``quantized`` stores them, the rest, or all of it, in 16 bits."""
    return (_num_linear_bytes(shape, quantized) + 2 * num_unquantized(shape)) / GIB


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


def num_unquantized(shape: ModelShape) -> int:
    """Parameters beside the blocks' linear layers."""
    num_tables = 1 if shape.tie_word_embeddings else 2
    norms = (2 * shape.num_layers + 1) * shape.hidden_size
    return num_tables * shape.vocab_size * shape.hidden_size + norms
