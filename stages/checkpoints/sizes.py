"""How large a model is, layer by layer, so that a plan can reason about memory: of its weights, or of a shape given."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from stages.checkpoints.formats import Format
from stages.checkpoints.shape import ModelShape, linear_layers, num_unquantized
from stages.units import GIB

_NUMBERS = re.compile(r"(?<=\.)\d+(?=\.)")


class LayerSize(NamedTuple):
    """``num_matrices`` (several for experts stored together) of ``rows`` outputs and ``columns`` inputs."""

    num_matrices: int
    rows: int
    columns: int

    @property
    def num_elements(self) -> int:
        return self.num_matrices * self.rows * self.columns


class Heads(NamedTuple):
    """Attention heads of a block: of queries, of keys and values, and the elements of each."""

    queries: int
    keys: int
    size: int


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The linear layers of a model's blocks, elements of all other weights, and keys and values of one token."""

    linears: Mapping[str, LayerSize]
    num_others: int
    token_elements: int | None  # None: not known
    ties_head: bool
    heads: Heads | None = None  # None: not known

    @classmethod
    def of_shape(cls, shape: ModelShape) -> "ModelSizes":
        """Of a dense decoder like Llama."""
        linears = {
            f"model.layers.{index}.{name}": LayerSize(1, *size)
            for index in range(shape.num_layers)
            for name, size in linear_layers(shape).items()
        }
        token_elements = 2 * shape.num_layers * shape.num_key_value_heads * shape.head_dim
        heads = Heads(shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim)
        return cls(linears, num_unquantized(shape), token_elements, shape.tie_word_embeddings, heads)

    @property
    def num_parameters(self) -> int:
        return self.num_others + sum(size.num_elements for size in self.linears.values())

    def weight_gib(self, quantized: Format | None = None) -> float:
        """Memory of the weights: block linears as ``quantized`` stores them, the rest, or all of it, in 16 bits."""
        if quantized is None:
            return 2 * self.num_parameters / GIB
        num_bytes = sum(
            size.num_matrices * quantized.num_bytes(size.rows, size.columns) for size in self.linears.values()
        )
        return (num_bytes + 2 * self.num_others) / GIB

    def kv_cache_gib(self, num_tokens: int) -> float | None:
        """Memory of keys and values of so many tokens in 16 bits; None where it is not known."""
        return None if self.token_elements is None else 2 * self.token_elements * num_tokens / GIB


def alike(name: str) -> str:
    """A layer's name inside its block, with a star for the number of an expert."""
    block = re.search(r"\.\d+\.", name)
    inside = name[block.end() :] if block else name
    return _NUMBERS.sub("*", inside)
