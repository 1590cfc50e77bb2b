"""What a quantized checkpoint must hold, tensor by tensor: foretold by compressed-tensors itself on the meta device."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.checkpoints.intent import Intent
from stages.checkpoints.loaded import stored_dtype
from stages.checkpoints.meta import LoadedModel
from stages.checkpoints.opening import renamed_layers
from stages.checkpoints.rotations import attach_rotations, fused_into
from stages.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from torch import Tensor

_PACKED = "pack-quantized"


@dataclass(frozen=True)
class Stored:
    """Type, in safetensors' words, and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int = field(compare=False)


@dataclass(frozen=True)
class Layer:
    """A quantized layer: compressed-tensors' scheme, and what is stored of it by the names inside it."""

    scheme: Any
    tensors: Mapping[str, Stored]


@dataclass(frozen=True)
class Expected:
    """What is foretold, by the names that the loader gives.

    ``layers``: quantized ones; ``others``: tensors of the base that stay as they are; ``added``: what quantization adds
    elsewhere, such as scales of a cache and rotations; ``others_are_rotated``: rotations are fused into those, too.
    """

    base: LoadedModel
    layers: Mapping[str, Layer]
    others: Mapping[str, Stored]
    added: Mapping[str, Stored]
    others_are_rotated: bool = False

    @property
    def tensors(self) -> dict[str, Stored]:
        """All of them."""
        inside = {
            f"{name}.{local}": stored for name, layer in self.layers.items() for local, stored in layer.tensors.items()
        }
        return {**inside, **self.others, **self.added}

    @property
    def num_bytes(self) -> int:
        return sum(stored.num_bytes for stored in self.tensors.values())


def foretell(base: LoadedModel, intent: Intent) -> Expected:
    """The checkpoint that ``intent`` makes of ``base``, whose model becomes it: from descriptions and headers alone.

    Raises CheckpointError where the model cannot be what the intent says.
    """
    before = dict(base.tensors)
    attach_rotations(base.model, intent.quantization.get("transform_config"))
    try:
        layers = _quantized(base, intent)
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, NotImplementedError) as error:
        why = one_line(error)
        raise CheckpointError(f"the model cannot be what quantization_config describes: {why}") from error
    inside = {f"{name}.{local}" for name, layer in layers.items() for local in layer.tensors}
    shared = {name for name, _ in base.model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in base.model.named_parameters()
    }
    left_out = base.tied.keys() | inside | (shared - before.keys())
    rest = {name: _stored(tensor) for name, tensor in base.model.state_dict().items() if name not in left_out}
    others = {name: stored for name, stored in rest.items() if name in before}
    added = {name: stored for name, stored in rest.items() if name not in before}
    rotated = fused_into(base.model, intent.quantization.get("transform_config"))
    return Expected(base, layers, others, added, not rotated <= layers.keys())


def _quantized(base: LoadedModel, intent: Intent) -> dict[str, Layer]:
    """Quantize the model on the meta device, as a loader does before it reads weights."""
    from compressed_tensors.compressors.base import compress_module
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config

    words = {name: value for name, value in intent.quantization.items() if name in QuantizationConfig.model_fields}
    config = QuantizationConfig.model_validate(words)
    config.quantization_status = QuantizationStatus.COMPRESSED
    config.ignore = [*(config.ignore or []), *renamed_layers(base.names, config.ignore or [])]
    for scheme in config.config_groups.values():
        scheme.format = scheme.format or intent.quantization.get("format")
    apply_quantization_config(base.model, config, show_progress=False)
    found = {}
    for name, module in _quantizable(base.model):
        compress_module(module)
        found[name] = Layer(module.quantization_scheme, _tensors(module))
    return found


def _quantizable(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None and hasattr(module, "weight"):
            yield name, module


def _tensors(module: Any) -> dict[str, Stored]:
    scheme = module.quantization_scheme
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    rows = module.out_features if hasattr(module, "out_features") else module.num_embeddings
    found = {}
    for name, tensor in own.items():
        shape = tuple(tensor.shape)
        if name == "weight_zero_point" and scheme.format == _PACKED and shape[0] == rows:
            # On the meta device compressed-tensors leaves them unpacked.
            words = math.ceil(rows * scheme.weights.num_bits / 32)
            found[name] = Stored("I32", (words, *shape[1:]), 4 * words * math.prod(shape[1:]))
        elif name != "bias":
            found[name] = _stored(tensor)
    return found


def _stored(tensor: "Tensor") -> Stored:
    return Stored(stored_dtype(tensor.dtype), tuple(tensor.shape), tensor.numel() * tensor.element_size())
