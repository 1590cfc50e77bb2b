"""What a weight format is: bits, scales, packing and arithmetic, a row a format, by compressed-tensors' preset name.

Everything that depends on a format asks here, so that a new one is a row.  The words are compressed-tensors' own, and
a test compares the rows with its presets.  Read without torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from stages.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """How the values of weights or of activations are quantized: compressed-tensors' QuantizationArgs as plain data."""

    num_bits: int
    type: str  # int, float
    strategy: str  # what shares a scale: tensor, channel, group, tensor_group, block; of activations also token
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None  # (rows, columns)
    symmetric: bool = True  # False: each scale has a zero point
    dynamic: bool | str = False  # local: scales of groups at run time, one of the tensor from calibration
    scale_dtype: str | None = None  # in safetensors' words; None: that of the unquantized weight

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> Self:
        """Read QuantizationArgs as ``config.json`` and ``recipe.yaml`` hold them; KeyError for an unknown word."""
        group_size, block = args.get("group_size"), args.get("block_structure")
        scale_dtype = args.get("scale_dtype")
        return cls(
            num_bits=args["num_bits"],
            type=args["type"],
            strategy=args["strategy"],
            group_size=None if group_size == -1 else group_size,  # an old way to say channel
            block_structure=tuple(block) if block else None,
            symmetric=args.get("symmetric", True),
            dynamic=args.get("dynamic", False),
            scale_dtype=None if scale_dtype is None else _SAFETENSORS[scale_dtype],
        )

    @property
    def columns_per_scale(self) -> int | None:
        """Inputs that share a scale in one row; None where all of them do."""
        return self.block_structure[1] if self.block_structure else self.group_size

    @property
    def scaled(self) -> str:
        """What shares a scale, in words."""
        return f"groups of {self.columns_per_scale}" if self.columns_per_scale else f"whole {self.strategy}s"

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Shape of the scales of a weight (rows, columns)."""
        if self.strategy == "tensor":
            return (1,)
        rows_per_scale = self.block_structure[0] if self.block_structure else 1
        return (math.ceil(rows / rows_per_scale), math.ceil(columns / (self.columns_per_scale or columns)))


class Stored(NamedTuple):
    """Type, in safetensors' words, and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _NUM_BITS[self.dtype] // 8


class Packing(NamedTuple):
    """How codes are stored: the tensor that holds them, its type, and the type of scales where that is fixed."""

    tensor: str  # weight: a code an element; weight_packed: codes side by side in words
    dtype: str
    scale_dtype: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A format of linear layers' weights, and of the activations they are multiplied by."""

    weights: Quantization
    activations: Quantization | None = None  # None: not quantized
    packing: str  # compressed-tensors' ``format``
    is_supported: bool = field(default=False, compare=False)  # a recipe may ask for it

    @property
    def needs_calibration(self) -> bool:
        """Whether scales of activations, or one scale above them, are fixed from calibration data."""
        return self.activations is not None and self.activations.dynamic is not True

    @property
    def takes_group_size(self) -> bool:
        """Whether a recipe may choose the group size: FP4 and MX formats have their own."""
        return self.weights.strategy == "group" and self.weights.scale_dtype is None

    @property
    def arithmetic(self) -> str | None:
        """What linear layers multiply in (fp8, int8, fp4, ...); None where weights become the model's own type first.

        A device without such products multiplies in another: that is the device's fact, not the format's.
        """
        if self.activations is None:
            return None
        return f"{'fp' if self.activations.type == 'float' else 'int'}{self.activations.num_bits}"

    def with_group_size(self, group_size: int | None) -> Self:
        """The same with other groups; None keeps the format's own."""
        return self if group_size is None else replace(self, weights=replace(self.weights, group_size=group_size))

    def stored_tensors(self, rows: int, columns: int, dtype: str = "BF16") -> dict[str, Stored]:
        """What a layer whose weight was (rows, columns) of ``dtype`` is stored as, by names inside it."""
        scales = Stored(self.weights.scale_dtype or dtype, self.weights.scale_shape(rows, columns))
        tensors = self._codes(rows, columns) | {"weight_scale": scales}
        if not self.weights.symmetric:
            tensors["weight_zero_point"] = self._zero_points(rows, scales.shape)
        if self.weights.strategy == "tensor_group":
            tensors["weight_global_scale"] = Stored("F32", (1,))
        if self.needs_calibration:
            is_local = self.activations is not None and self.activations.dynamic == "local"
            tensors["input_global_scale" if is_local else "input_scale"] = Stored("F32" if is_local else dtype, (1,))
        return tensors

    def num_bytes(self, rows: int, columns: int, dtype: str = "BF16") -> int:
        """Bytes of a weight's codes, scales and zero points, without the at most 16 bytes a layer of its constants."""
        tensors = self.stored_tensors(rows, columns, dtype)
        return sum(tensor.num_bytes for name, tensor in tensors.items() if name in _GROWING)

    def _codes(self, rows: int, columns: int) -> dict[str, Stored]:
        name, dtype, _ = PACKINGS[self.packing]
        if name == "weight":
            return {name: Stored(dtype, (rows, columns))}
        packed = {name: Stored(dtype, (rows, _num_words(columns, self.weights.num_bits, dtype)))}
        if dtype == "I32":  # the last word of a row may be padded: its length is stored as well
            packed["weight_shape"] = Stored("I64", (2,))
        return packed

    def _zero_points(self, rows: int, shape: tuple[int, ...]) -> Stored:
        """Packed along the outputs, where codes are packed along the inputs."""
        name, dtype, _ = PACKINGS[self.packing]
        if name == "weight":
            return Stored(dtype, shape)
        return Stored(dtype, (_num_words(rows, self.weights.num_bits, dtype), *shape[1:]))


def format_of(config: Mapping[str, Any]) -> Format | None:
    """The format that a checkpoint's ``config.json`` describes; None where nothing is quantized.

    Raises CheckpointError for another method, for several formats in one checkpoint, and for words unknown here.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    if (method := quantization.get("quant_method")) != "compressed-tensors":
        raise CheckpointError(f"quantization method {method!r} is not compressed-tensors")
    groups = quantization.get("config_groups") or {}
    found = {described(group, group.get("format") or quantization.get("format")) for group in groups.values()}
    if len(found) != 1:
        raise CheckpointError(f"config.json describes {len(found)} weight formats; a checkpoint can have one")
    return found.pop()


def described(group: Mapping[str, Any], packing: str | None) -> Format:
    """The format of one of ``config_groups``, stored as ``packing``; CheckpointError for words unknown here."""
    try:
        default = PACKINGS[str(packing)].scale_dtype
        weights = Quantization.from_args(group["weights"])
        activations = Quantization.from_args(args) if (args := group.get("input_activations")) else None
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"quantization_config describes no weight format known here ({error}); packings known are "
            f"{', '.join(PACKINGS)}"
        ) from error
    # Checkpoints of older versions do not name the type of scales that their packing implies.
    weights = replace(weights, scale_dtype=weights.scale_dtype or default)
    return Format(weights=weights, activations=activations, packing=str(packing))


def _num_words(num_codes: int, num_bits: int, dtype: str) -> int:
    return math.ceil(num_codes * num_bits / _NUM_BITS[dtype])


PACKINGS: Mapping[str, Packing] = {
    "pack-quantized": Packing("weight_packed", "I32"),
    "int-quantized": Packing("weight", "I8"),
    "float-quantized": Packing("weight", "F8_E4M3"),
    "nvfp4-pack-quantized": Packing("weight_packed", "U8", "F8_E4M3"),
    "mxfp4-pack-quantized": Packing("weight_packed", "U8", "U8"),  # scales in U8 are E8M0: exponents of two
    "mxfp8-quantized": Packing("weight", "F8_E4M3", "U8"),
}
_GROWING = frozenset({"weight", "weight_packed", "weight_scale", "weight_zero_point"})
_NUM_BITS = {"I64": 64, "F64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "I8": 8, "U8": 8}
_SAFETENSORS = {"torch.float8_e4m3fn": "F8_E4M3", "torch.uint8": "U8"}

_FP8 = Quantization(num_bits=8, type="float", strategy="tensor")
_FP8_TOKENS = Quantization(num_bits=8, type="float", strategy="token", dynamic=True)
_INT8_TOKENS = Quantization(num_bits=8, type="int", strategy="token", dynamic=True)
_INT4_TOKENS = replace(_INT8_TOKENS, num_bits=4)
_NVFP4 = Quantization(num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype="F8_E4M3")
_MXFP4 = Quantization(num_bits=4, type="float", strategy="group", group_size=32, scale_dtype="U8")
_MXFP8 = replace(_MXFP4, num_bits=8)


def _int_groups(num_bits: int, activations: Quantization | None = None, *, is_supported: bool = False) -> Format:
    """Integers in groups of 128.  Multiplied by quantized activations they are stored a byte each, however few bits."""
    weights = Quantization(num_bits=num_bits, type="int", strategy="group", group_size=128)
    packing = "int-quantized" if activations else "pack-quantized"
    return Format(weights=weights, activations=activations, packing=packing, is_supported=is_supported)


_W4A16 = _int_groups(4, is_supported=True)
_W8A8 = Format(
    weights=Quantization(num_bits=8, type="int", strategy="channel"),
    activations=_INT8_TOKENS,
    packing="int-quantized",
    is_supported=True,
)

FORMATS: Mapping[str, Format] = {
    "FP8_DYNAMIC": Format(
        weights=replace(_FP8, strategy="channel"),
        activations=_FP8_TOKENS,
        packing="float-quantized",
        is_supported=True,
    ),
    "FP8": Format(weights=_FP8, activations=_FP8, packing="float-quantized", is_supported=True),
    "FP8_BLOCK": Format(
        weights=replace(_FP8, strategy="block", block_structure=(128, 128)),
        activations=replace(_FP8, strategy="group", group_size=128, dynamic=True),
        packing="float-quantized",
    ),
    "W8A8": _W8A8,
    "INT8": replace(_W8A8, is_supported=False),  # another name for W8A8
    "W8A16": _int_groups(8, is_supported=True),
    "W4A16": _W4A16,
    "W4A16_ASYM": replace(_W4A16, weights=replace(_W4A16.weights, symmetric=False)),
    "W4AFP8": _int_groups(4, _FP8_TOKENS),
    "NVFP4A16": Format(weights=_NVFP4, packing="nvfp4-pack-quantized"),
    "NVFP4": Format(weights=_NVFP4, activations=replace(_NVFP4, dynamic="local"), packing="nvfp4-pack-quantized"),
    "MXFP4A16": Format(weights=_MXFP4, packing="mxfp4-pack-quantized"),
    "MXFP4": Format(weights=_MXFP4, activations=replace(_MXFP4, dynamic=True), packing="mxfp4-pack-quantized"),
    "MXFP8A16": Format(weights=_MXFP8, packing="mxfp8-quantized"),
    "MXFP8": Format(weights=_MXFP8, activations=replace(_MXFP8, dynamic=True), packing="mxfp8-quantized"),
    "W2A4": _int_groups(2, _INT4_TOKENS),
    "W2A8": _int_groups(2, _INT8_TOKENS),
    "W2A16": _int_groups(2),
    "W3A4": _int_groups(3, _INT4_TOKENS),
    "W3A8": _int_groups(3, _INT8_TOKENS),
    "W3A16": _int_groups(3),
    "W4A4": _int_groups(4, _INT4_TOKENS),
    "W4A8": _int_groups(4, _INT8_TOKENS),
    "W5A8": _int_groups(5, _INT8_TOKENS),
    "W5A16": _int_groups(5),
    "W6A8": _int_groups(6, _INT8_TOKENS),
    "W6A16": _int_groups(6),
    "W7A8": _int_groups(7, _INT8_TOKENS),
    "W7A16": _int_groups(7),
}
SUPPORTED = tuple(name for name, row in FORMATS.items() if row.is_supported)
