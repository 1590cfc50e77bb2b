"""What a request must cost at least: bytes over the memory bandwidth, operations over the matrix rate.

Weights are read once for a step of all sequences in flight, keys and values for each of them; a token takes two
operations for every weight it is multiplied by.  Attention's own operations are left out: at these lengths they are a
few per cent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stages.checkpoints.description import describe
from stages.checkpoints.formats import format_of
from stages.checkpoints.quantized import read_quantized
from stages.checkpoints.shape import ModelShape, kv_cache_gib, num_parameters, weight_gib
from stages.errors import CheckpointError
from stages.published import read_described
from stages.units import GIB


@dataclass(frozen=True, slots=True)
class Work:
    """What serving a checkpoint has to move and to compute."""

    prompt_tokens: int
    output_tokens: int
    weight_gib: float  # all of it
    step_gib: float  # of the weights, read for every step
    token_kib: float  # keys and values of one token
    token_gflop: float
    arithmetic: str  # what linear layers multiply in: bf16, fp8, int8, fp4


def work_of(checkpoint: Path, prompt_tokens: int, output_tokens: int, dtype: str = "bfloat16") -> Work | None:
    """Read the shape from the checkpoint's ``config.json``, and the format from there or, of a published checkpoint,
    also from its headers; what is not quantized is served in ``dtype``.

    None where shape or format is not known, or is not one: then nothing says what serving must cost at least.
    """
    shape = ModelShape.from_config(checkpoint / "config.json")
    is_wide = dtype == "float32"
    try:
        stored = None if shape is None else _stored(checkpoint, shape, is_wide)
    except CheckpointError:
        return None
    if shape is None or stored is None:
        return None
    table = shape.vocab_size * shape.hidden_size
    looked_up = 0 if shape.tie_word_embeddings else table  # of the input embeddings a step reads single rows
    return Work(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        weight_gib=stored.weight_gib,
        step_gib=stored.weight_gib - (4 if is_wide else 2) * looked_up / GIB,
        token_kib=kv_cache_gib(shape, num_tokens=1, num_bits=stored.cache_bits) * 2**20,
        token_gflop=2 * (num_parameters(shape) - looked_up) / 1e9,
        arithmetic=stored.arithmetic or ("fp32" if is_wide else "bf16"),
    )


class _Stored(NamedTuple):
    """Memory of the weights, what they are multiplied in (None: the model's own type), bits of a key or a value."""

    weight_gib: float
    arithmetic: str | None
    cache_bits: int


def _stored(checkpoint: Path, shape: ModelShape, is_wide: bool) -> _Stored | None:
    """None of a mixture of arithmetics.  Raises CheckpointError for a format that is not known."""
    bits = 32 if is_wide else 16
    if read_described(checkpoint) is None:
        quantized = format_of(json.loads((checkpoint / "config.json").read_text()))
        weights = weight_gib(shape, quantized) * (2 if is_wide and quantized is None else 1)
        return _Stored(weights, None if quantized is None else quantized.arithmetic, bits)
    found = read_quantized(checkpoint, describe(checkpoint))
    kinds = {group.arithmetic for group in found.groups}
    return _Stored(found.size_gib, kinds.pop(), 8 if found.has_narrow_cache else bits) if len(kinds) == 1 else None


def least_latency_s(work: Work | None, ceilings: Mapping[str, float | None], num_gpus: int = 1) -> float | None:
    """The fastest that one request alone can be answered; None if the work or a ceiling is not known."""
    rates = None if work is None else _rates(work, ceilings, num_gpus)
    if work is None or rates is None:
        return None
    bytes_s, flop_s = rates
    read_prompt_s = max(work.step_gib * GIB / bytes_s, work.prompt_tokens * work.token_gflop * 1e9 / flop_s)
    return read_prompt_s + (work.output_tokens - 1) * _step_s(work, 1, bytes_s, flop_s)


def most_requests_per_s(
    work: Work | None, ceilings: Mapping[str, float | None], concurrency: int, num_gpus: int = 1
) -> float | None:
    """The most requests a second with so many in flight; None if the work or a ceiling is not known."""
    rates = None if work is None else _rates(work, ceilings, num_gpus)
    if work is None or rates is None:
        return None
    bytes_s, flop_s = rates
    read_prompts_s = concurrency * work.prompt_tokens * work.token_gflop * 1e9 / flop_s
    return concurrency / (read_prompts_s + (work.output_tokens - 1) * _step_s(work, concurrency, bytes_s, flop_s))


def _step_s(work: Work, num_sequences: int, bytes_s: float, flop_s: float) -> float:
    """One decoding step, at the mean length of the sequences."""
    length = work.prompt_tokens + work.output_tokens / 2
    moved = work.step_gib * GIB + num_sequences * length * work.token_kib * 1024
    return max(moved / bytes_s, num_sequences * work.token_gflop * 1e9 / flop_s)


def _rates(work: Work, ceilings: Mapping[str, float | None], num_gpus: int) -> tuple[float, float] | None:
    bandwidth, matrix = ceilings.get("bandwidth_gb_s"), ceilings.get(f"{work.arithmetic}_tflop_s")
    if bandwidth is None or matrix is None:
        return None
    return num_gpus * bandwidth * 1e9, num_gpus * matrix * 1e12
