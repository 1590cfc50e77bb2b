"""How a checkpoint of somebody else is quantized: from config.json and the headers of its weights alone, without torch.

Six forms are known, each by its ``quant_method``; what they say is told in the words of ``formats.Quantization``.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stages.checkpoints.description import ModelDescription
from stages.checkpoints.files import CONFIG
from stages.checkpoints.formats import Format, Quantization
from stages.checkpoints.headers import TensorInfo, num_stored_bytes
from stages.checkpoints.ranks import rotates_at_run_time
from stages.checkpoints.scales import misfit
from stages.checkpoints.shape import read_description
from stages.checkpoints.sizes import alike
from stages.errors import CheckpointError, StageError
from stages.units import GIB

MODELOPT = "hf_quant_config.json"  # where ModelOpt says it, too
_SETTINGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # of tools that wrote no quantization_config
# A tensor beside a quantized weight, or the weight itself under another name than it had.
_OF_QUANTIZED = re.compile(
    r"(?:\.(?:qweight|weight_packed|weight_scale|weight_scale_inv|weight_scale_2)|_scale_inv|_scale_2|_blocks)$"
)
_BLOCK = re.compile(r"^(?:.*?\.)?(\d+)\.")
_OUTSIDE = re.compile(r"vision|visual|image|audio|speech|projector|connector|aligner", re.IGNORECASE)
_NO_LINEAR = re.compile(r"embed|norm|conv|wpe|wte", re.IGNORECASE)
_SHOWN = 4


class Group(NamedTuple):
    """What some layers are quantized to; activations None: they stay as they are."""

    weights: Quantization
    activations: Quantization | None = None
    packing: str | None = None  # how compressed-tensors stores it

    @property
    def arithmetic(self) -> str | None:
        """What its layers multiply in (fp8, int8, fp4); None where weights become the model's own type first."""
        inputs = self.activations
        return None if inputs is None else f"{'fp' if inputs.type == 'float' else 'int'}{inputs.num_bits}"

    @property
    def words(self) -> str:
        """Its weights and activations, as a reader knows them."""
        inputs = "activations as they are" if self.activations is None else f"activations {_words(self.activations)}"
        return f"weights {_words(self.weights)}, {inputs}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """``method`` is the form it is stored in; ``layers`` are quantized, ``kept`` are linear layers that are not."""

    method: str
    groups: tuple[Group, ...]
    kv_cache: str | None
    rotates: bool = False  # at run time, beyond what is in its weights
    layers: frozenset[str] = frozenset()
    kept: tuple[str, ...] = ()
    num_bytes: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def formats(self) -> tuple[Format, ...]:
        """Of its groups, each once; what is not compressed-tensors' is stored in the way of its method."""
        return _formats(self.method, self.groups)

    @property
    def num_bits(self) -> int:
        """Of a weight; of a mixture the fewest."""
        return min(group.weights.num_bits for group in self.groups)

    @property
    def rounds(self) -> str | None:
        """What activations are rounded to, of a mixture in words; None where they stay as they are."""
        return " and ".join(dict.fromkeys(each for group in self.groups if (each := group.arithmetic))) or None

    @property
    def has_narrow_cache(self) -> bool:
        """Whether keys and values are kept in 8 bits."""
        return self.kv_cache is not None and self.kv_cache.endswith("8")

    @property
    def size_gib(self) -> float:
        """Of all stored tensors."""
        return self.num_bytes / GIB

    @property
    def words(self) -> str:
        """The line that is shown beside its scores."""
        groups = "; ".join(dict.fromkeys(group.words for group in self.groups))
        parts = [f"{self.method}: {groups}", f"KV cache {self.kv_cache or 'as it is'}"]
        if self.layers:
            parts.append(f"{len(self.layers)} linear layers quantized, {len(self.kept)} not{_kept_words(self.kept)}")
        return "; ".join([*parts, *self.notes])


def read_quantized(model_dir: Path, model: ModelDescription) -> Quantized:
    """How the checkpoint is quantized.  CheckpointError, in one line, for one that is not, or in an unknown form."""
    method, said = _said(model_dir, model.config)
    reader = _READERS.get(method)
    if reader is None:
        raise CheckpointError(
            f"model path {model_dir} is quantized by {method}, a form that is not known here; known are "
            f"{', '.join(_READERS)}"
        )
    try:
        groups, kv_cache, notes = reader(said)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"model path {model_dir}: quantization_config ({method}) cannot be read ({type(error).__name__}: {error})"
        ) from error
    unique = tuple(dict.fromkeys(groups))
    wrong = misfit(method, unique[0].weights, model.infos) if len(unique) == 1 else None
    if wrong is not None:
        raise CheckpointError(
            f"model path {model_dir}: {wrong}, as quantization_config ({_words(unique[0].weights)}) wants: config.json "
            "and weights are of two checkpoints; fetch both again"
        )
    layers = frozenset(quantized_layers(model.infos))
    if not layers:
        raise CheckpointError(
            f"model path {model_dir} says that it is quantized ({method}), and stores no quantized layer: fetch it "
            "again, or take it as a model"
        )
    return Quantized(
        method=method,
        groups=tuple(dict.fromkeys(groups)),
        kv_cache=kv_cache,
        rotates=rotates_at_run_time(said),
        layers=layers,
        kept=tuple(_kept(model.infos, layers)),
        num_bytes=num_stored_bytes(dict(model.infos)),
        notes=tuple(notes),
    )


def read_formats(model_dir: Path) -> tuple[Format, ...]:
    """The formats that a checkpoint's files say it has; none where they say nothing that is known here."""
    try:
        method, said = _said(model_dir, read_description(model_dir / CONFIG))
        return _formats(method, _READERS[method](said)[0])
    except (StageError, KeyError, TypeError, ValueError, AttributeError):
        return ()


def _formats(method: str, groups: Iterable[Group]) -> tuple[Format, ...]:
    return tuple(
        dict.fromkeys(
            Format(weights=each.weights, activations=each.activations, packing=each.packing or method)
            for each in groups
        )
    )


def quantized_layers(infos: Iterable[str]) -> set[str]:
    """Names of the layers that are stored quantized; of experts stored as one, that of their tensor."""
    return {_OF_QUANTIZED.sub("", name) for name in infos if _OF_QUANTIZED.search(name)}


def _said(model_dir: Path, config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The method, and what describes it: in config.json, or in a file beside it."""
    if said := _in_config(config):
        if said.get("quant_method") == "modelopt" and "quant_algo" not in said and (model_dir / MODELOPT).is_file():
            said = {**read_description(model_dir / MODELOPT).get("quantization", {}), **said}
        return str(said.get("quant_method") or "a method that quantization_config does not name"), said
    if (model_dir / MODELOPT).is_file():
        return "modelopt", read_description(model_dir / MODELOPT).get("quantization", {})
    for name, method in _SETTINGS.items():
        if (model_dir / name).is_file():
            return method, read_description(model_dir / name)
    raise CheckpointError(
        f"model path {model_dir} is not quantized: config.json has no quantization_config; a published checkpoint is a "
        "quantized one, and any other is a model"
    )


def _in_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    named = (part.get(name) for part in parts for name in ("quantization_config", "compression_config"))
    return next((said for said in named if isinstance(said, dict) and said), {})


# ---- what each form says: its groups, its cache of keys and values, and what else a reader must know

_Read = tuple[list[Group], str | None, list[str]]
_INT4 = Quantization(num_bits=4, type="int", strategy="group", group_size=128)
_FP8 = Quantization(num_bits=8, type="float", strategy="tensor")
_FP4 = Quantization(num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype="F8_E4M3")


def _compressed_tensors(said: Mapping[str, Any]) -> _Read:
    described = [group for group in said["config_groups"].values() if group.get("weights")]
    groups = [_group(each)._replace(packing=each.get("format") or said.get("format")) for each in described]
    transforms = ["rotated at run time"] if said.get("transform_config") else []
    return _some(groups), _cache(said.get("kv_cache_scheme")), transforms


def _fp8(said: Mapping[str, Any]) -> _Read:
    block = said.get("weight_block_size")
    is_dynamic = said.get("activation_scheme", "dynamic") == "dynamic"
    if not block:
        return [Group(_FP8, Quantization(num_bits=8, type="float", strategy="tensor", dynamic=is_dynamic))], None, []
    rows, columns = block
    weights = Quantization(num_bits=8, type="float", strategy="block", block_structure=(rows, columns))
    inputs = Quantization(num_bits=8, type="float", strategy="group", group_size=columns, dynamic=True)
    return [Group(weights, inputs if is_dynamic else _FP8)], None, []


def _awq(said: Mapping[str, Any]) -> _Read:
    bits, group_size = said.get("bits", said.get("w_bit")), said.get("group_size", said.get("q_group_size"))
    return [Group(_integers(bits, group_size, symmetric=not said.get("zero_point", True)))], None, []


def _gptq(said: Mapping[str, Any]) -> _Read:
    found = Group(_integers(said["bits"], said.get("group_size", -1), symmetric=bool(said.get("sym", True))))
    notes = ["columns in order of activations"] if said.get("desc_act") else []
    return [found], None, notes + (["other settings for some layers"] if said.get("dynamic") else [])


def _modelopt(said: Mapping[str, Any]) -> _Read:
    cache = _cache(said.get("kv_cache_scheme")) or said.get("kv_cache_quant_algo")
    named = said.get("quant_algo")
    algorithms = [str(each.get("quant_algo")) for each in (said.get("quantized_layers") or {}).values()]
    algorithms = algorithms or ([str(named)] if named and named != "MIXED_PRECISION" else [])
    if algorithms:
        groups = [_MODELOPT[name] for name in dict.fromkeys(algorithms)]
    else:
        groups = [_group(group) for group in said["config_groups"].values()]
    return _some(groups), str(cache).upper() if cache else None, []


def _mxfp4(said: Mapping[str, Any]) -> _Read:
    return [Group(Quantization(num_bits=4, type="float", strategy="group", group_size=32, scale_dtype="U8"))], None, []


_READERS: Mapping[str, Callable[[Mapping[str, Any]], _Read]] = {
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "awq": _awq,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
}
_MODELOPT = {
    "FP8": Group(_FP8, _FP8),
    "FP8_PER_CHANNEL_PER_TOKEN": Group(
        Quantization(num_bits=8, type="float", strategy="channel"),
        Quantization(num_bits=8, type="float", strategy="token", dynamic=True),
    ),
    "NVFP4": Group(_FP4, _FP4),
    "NVFP4_AWQ": Group(_FP4, _FP4),
    "W4A16_NVFP4": Group(_FP4),
    "W4A16_AWQ": Group(_INT4),
    "W8A16": Group(Quantization(num_bits=8, type="int", strategy="channel")),
}


def _group(said: Mapping[str, Any]) -> Group:
    activations = said.get("input_activations")
    return Group(_arguments(said["weights"]), _arguments(activations) if activations else None)


def _arguments(said: Mapping[str, Any]) -> Quantization:
    """ModelOpt leaves out what compressed-tensors names: groups of 16 with a strategy of their own."""
    strategy = said.get("strategy") or ("tensor_group" if said.get("group_size") else "tensor")
    return Quantization.from_args({"type": "int", **said, "strategy": strategy})


def _integers(bits: Any, group_size: Any, *, symmetric: bool) -> Quantization:
    if group_size in (None, -1):
        return Quantization(num_bits=int(bits), type="int", strategy="channel", symmetric=symmetric)
    return Quantization(
        num_bits=int(bits), type="int", strategy="group", group_size=int(group_size), symmetric=symmetric
    )


def _some(groups: list[Group]) -> list[Group]:
    if not groups:
        raise ValueError("it names no weights")
    return groups


def _cache(said: Any) -> str | None:
    return f"{'FP' if said.get('type') == 'float' else 'INT'}{said['num_bits']}" if said else None


# ---- in words


def _words(quantization: Quantization) -> str:
    kind = "FP" if quantization.type == "float" else "INT"
    scaled = f"groups of {quantization.group_size}" if quantization.group_size else f"a scale a {quantization.strategy}"
    if quantization.block_structure:
        scaled = "blocks of {} x {}".format(*quantization.block_structure)
    zero_points = "" if quantization.symmetric else ", zero points"
    return f"{kind}{quantization.num_bits} ({scaled}{zero_points})"


def _kept(infos: Mapping[str, TensorInfo], layers: frozenset[str]) -> list[str]:
    """Matrices of the language model that are not quantized: of its blocks, and the output head."""
    found = []
    for name, info in infos.items():
        layer = name.removesuffix(".weight")
        is_matrix = len(info.shape) > 1 and not _NO_LINEAR.search(layer) and not _OUTSIDE.search(layer)
        is_place = _BLOCK.match(name) is not None or layer.rpartition(".")[2] == "lm_head"
        if is_matrix and is_place and layer not in layers and not _OF_QUANTIZED.search(name) and not _is_part(name):
            found.append(layer)
    return found


def _is_part(name: str) -> bool:
    """Whether a matrix belongs to a quantized weight: zero points, orders of columns, scales of other spellings."""
    return name.endswith((".qzeros", ".scales", ".g_idx", "_zero_point", "_scales", "_scale", "_shape"))


def _kept_words(kept: Iterable[str]) -> str:
    counted = Counter(map(alike, kept))
    if not counted:
        return ""
    shown = [f"{name} {count}" if count > 1 else name for name, count in counted.most_common(_SHOWN)]
    more = f" and {len(counted) - _SHOWN} more kinds" if len(counted) > _SHOWN else ""
    return f" ({', '.join(shown)}{more})"
