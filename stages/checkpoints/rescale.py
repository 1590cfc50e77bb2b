"""The same function in other weights, for a Llama whose weights lie on the grid of a quantized file.

What scales a channel where it is written is undone where it is read: a norm's weight and the columns of the linears
behind it, rows of ``v_proj`` and columns of ``o_proj``, rows of ``up_proj`` and columns of ``down_proj``.  So every
linear has a factor for each column, and no block of a row keeps its grid, on which another quantization costs too
little.  Embeddings that are also the head stay as they are: nothing undoes a factor there.

A factor is 1 or 2, so nothing is rounded and every arithmetic gives the same bits as before.  Factors between the two,
log-uniform in [1/1.3, 1.3], move SmolLM2's expectations in BF16 by a KL of 1.9e-3, of which its weights, rounded once
more, are 1.2e-4: the rest is BF16 itself, in which the model is 1.1e-3 from what it computes in float32.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages.checkpoints.files import weight_files
from stages.checkpoints.headers import TensorInfo, read_tensor_infos
from stages.checkpoints.shape import ModelShape
from stages.errors import DataError

if TYPE_CHECKING:
    from torch import Generator, Tensor

_DTYPES = {"F64", "F32", "BF16", "F16"}


class Factors(NamedTuple):
    """Powers of two for a tensor's rows (of a vector: its elements) and its columns; None where they stay."""

    rows: "Tensor | None" = None
    columns: "Tensor | None" = None


def rescale(model_dir: Path, seed: int) -> None:
    """Rewrite a checkpoint's weights in place; DataError, with nothing written, if it is not a plain Llama."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    factors = _factors(_plain_llama_shape(model_dir), seed)
    _check_tensors(model_dir, factors, read_tensor_infos(model_dir))
    for file in weight_files(model_dir):
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata()
        weights = load_file(file)
        save_file(
            {name: _scaled(weight, factors.get(name, Factors())) for name, weight in weights.items()}, file, metadata
        )


def _plain_llama_shape(model_dir: Path) -> ModelShape:
    config = json.loads((model_dir / "config.json").read_text())
    kind = "a quantized one" if "quantization_config" in config else repr(config.get("model_type"))
    if kind != "'llama'":
        raise DataError(f"model source: rescale_seed needs a plain Llama decoder and this is {kind}; leave it out")
    shape = ModelShape.from_config(model_dir / "config.json")
    if shape is None:
        raise DataError("model source: rescale_seed needs a plain Llama decoder and config.json says not its sizes")
    return shape


def _check_tensors(model_dir: Path, factors: dict[str, Factors], infos: dict[str, TensorInfo]) -> None:
    names = [name for name in factors if not name.endswith(".bias") or name in infos]
    strange = [name for name in names if name not in infos or infos[name].dtype not in _DTYPES]
    if strange:
        raise DataError(
            f"model source: rescale_seed needs a plain Llama decoder and this has no {strange[0]} in floating point; "
            "leave it out"
        )


def _scaled(weight: "Tensor", factors: Factors) -> "Tensor":
    if factors.rows is not None:
        weight = weight * factors.rows.to(weight.dtype).reshape(-1, *[1] * (weight.ndim - 1))
    if factors.columns is not None:
        weight = weight * factors.columns.to(weight.dtype)
    return weight


def _factors(shape: ModelShape, seed: int) -> dict[str, Factors]:
    """Of every tensor that changes, by its name; a bias need not be there."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Factors] = {}
    for layer in range(shape.num_layers):
        block = _block_factors(shape, generator)
        found |= {f"model.layers.{layer}.{name}": factors for name, factors in block.items()}
    if not shape.tie_word_embeddings:
        head = _draw(shape.hidden_size, generator)
        found |= {"model.norm.weight": Factors(rows=1 / head), "lm_head.weight": Factors(columns=head)}
    return found


def _block_factors(shape: ModelShape, generator: "Generator") -> dict[str, Factors]:
    attention = _draw(shape.hidden_size, generator)
    value = _draw(shape.num_key_value_heads * shape.head_dim, generator)
    mlp = _draw(shape.hidden_size, generator)
    up = _draw(shape.intermediate_size, generator)
    num_readers = shape.num_attention_heads // shape.num_key_value_heads  # query heads of each key-value head
    mixed = value.view(shape.num_key_value_heads, -1).repeat_interleave(num_readers, dim=0).flatten()
    return {
        "input_layernorm.weight": Factors(rows=1 / attention),
        "self_attn.q_proj.weight": Factors(columns=attention),
        "self_attn.k_proj.weight": Factors(columns=attention),
        "self_attn.v_proj.weight": Factors(rows=value, columns=attention),
        "self_attn.v_proj.bias": Factors(rows=value),
        "self_attn.o_proj.weight": Factors(columns=1 / mixed),
        "post_attention_layernorm.weight": Factors(rows=1 / mlp),
        "mlp.gate_proj.weight": Factors(columns=mlp),
        "mlp.up_proj.weight": Factors(rows=up, columns=mlp),
        "mlp.up_proj.bias": Factors(rows=up),
        "mlp.down_proj.weight": Factors(columns=1 / up),
    }


def _draw(size: int, generator: "Generator") -> "Tensor":
    """Float32 (size), each 1 or 2."""
    import torch

    return torch.randint(1, 3, (size,), generator=generator).float()
