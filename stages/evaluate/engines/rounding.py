"""A linear layer's input rounded to the grid of its format, in float32 whatever the dtype of the input.

Codes and scales are those of vLLM's kernels: an input's scale is a float32, its largest magnitude over the largest
code.  A scale computed in bfloat16 costs half of the format's own error again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

METHOD = "simulated"  # quant_method of a dense copy whose inputs are rounded
_LARGEST_CODE = {"e4m3": 448.0, "int8": 127.0}
_KINDS = {("float", 8): "e4m3", ("int", 8): "int8"}
_GRANULARITIES = {("token", True): "token", ("tensor", False): "tensor"}
_SMALLEST_SCALE = 2.0**-126  # a row of zeros is divided by it

_EXPONENT_BITS, _HALF_BIT, _EXPONENT_STEP = 0x7F800000, 0x400000, 1 << 23  # of a float32
_SMALLEST_NORMAL = (127 - 6) * _EXPONENT_STEP  # e4m3's; below it the grid is even
_DROPPED_BITS = 23 - 3  # of the mantissa


@dataclass(frozen=True, slots=True)
class InputFormat:
    """``kind`` of code (e4m3 or int8), and what shares a scale: a ``token`` (dynamic) or a ``tensor`` (static)."""

    kind: str
    granularity: str

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> "InputFormat":
        """Of compressed-tensors' ``input_activations``.  Raises ConfigError for a format that is not known here."""
        kind = _KINDS.get((args["type"], args["num_bits"]))
        granularity = _GRANULARITIES.get((args["strategy"], args["dynamic"]))
        if kind is None or granularity is None or not args["symmetric"]:
            shown = ", ".join(
                f"{name}={args[name]}" for name in ("type", "num_bits", "strategy", "dynamic", "symmetric")
            )
            raise ConfigError(
                f"inputs of {shown} cannot be simulated on a CPU, only symmetric 8-bit ones per token (dynamic) or per "
                "tensor (static); use engine=vllm_gpu on a GPU with a kernel for them"
            )
        return cls(kind, granularity)

    @property
    def facts(self) -> dict[str, Any]:
        """What a result depends on."""
        return {**asdict(self), "largest_code": _LARGEST_CODE[self.kind], "scale_dtype": "float32"}


def round_input(values: "Tensor", kind: str, scale: "Tensor | None" = None) -> "Tensor":
    """``values`` (..., inputs) on the grid of ``kind``: by ``scale`` (one float32), or each row by its own."""
    import torch

    largest = _LARGEST_CODE[kind]
    exact = values.to(torch.float32)
    if scale is None:
        scale = (_largest_magnitude(exact) / largest).clamp_(min=_SMALLEST_SCALE)
        codes = exact / scale
    else:
        codes = (exact / scale).clamp_(-largest, largest)
    codes = round_e4m3_(codes) if kind == "e4m3" else codes.round_()
    return codes.mul_(scale).to(values.dtype)


def round_e4m3_(values: "Tensor") -> "Tensor":
    """Float32 of at most 448 to the nearest FP8 e4m3 value, ties to even, in place: what a cast and back does.

    Adding 1.5 * 2**(exponent + 20) leaves three bits of the mantissa; torch's own cast takes three to four times as
    long on a CPU.
    """
    import torch

    bits = values.view(torch.int32).bitwise_and(_EXPONENT_BITS).clamp_(min=_SMALLEST_NORMAL)
    shift = bits.add_(_DROPPED_BITS * _EXPONENT_STEP + _HALF_BIT).view(torch.float32)
    return values.add_(shift).sub_(shift)


def _largest_magnitude(values: "Tensor") -> "Tensor":
    """Of each row; two reductions, since a copy of all magnitudes takes longer than both."""
    import torch

    return torch.maximum(values.amax(-1, keepdim=True), -values.amin(-1, keepdim=True))
