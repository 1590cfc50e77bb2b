"""How many layers GPTQ gave up on: llm-compressor rounds those to nearest and says so in its log alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Rounded:
    """Of ``num_layers`` that GPTQ was to quantize, how many are rounded to nearest."""

    num_layers: int = 0
    num_rounded: int = 0


@contextmanager
def rounded_layers() -> Iterator[Rounded]:
    """Counts what GPTQ does within it."""
    from llmcompressor.modifiers.gptq import base

    plain, counted = base.quantize_weight, Rounded()

    def counting(**arguments: Any) -> Any:
        quantized, losses, is_rounded = plain(**arguments)
        counted.num_layers += is_rounded.numel()
        counted.num_rounded += int(is_rounded.sum())
        return quantized, losses, is_rounded

    base.quantize_weight = counting
    try:
        yield counted
    finally:
        base.quantize_weight = plain
