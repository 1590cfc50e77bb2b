"""Quantize a checkpoint with llm-compressor: round-to-nearest or GPTQ, optionally after SmoothQuant.

The recipes of arXiv 2411.02355, section 3.2: FP8 by round-to-nearest without data, INT8 by GPTQ with dynamic
per-token activations, INT4 in groups of 128 by GPTQ with scales that minimise the squared error.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stages.calibrate import read_sequences
from stages.checkpoints.bf16 import fast_bf16_linear
from stages.checkpoints.description import describe
from stages.checkpoints.expected import foretell
from stages.checkpoints.files import CONFIG
from stages.checkpoints.finite import check_finite
from stages.checkpoints.formats import FORMATS, SUPPORTED, Format
from stages.checkpoints.gptq_fallback import Rounded, rounded_layers
from stages.checkpoints.headers import num_stored_bytes, read_tensor_infos
from stages.checkpoints.hessians import tensor_core_hessians
from stages.checkpoints.intent import Intent
from stages.checkpoints.layer_names import loaded_layers
from stages.checkpoints.meta import loaded_model
from stages.checkpoints.opening import load_model
from stages.checkpoints.saving import make_saveable
from stages.checkpoints.shape import read_description
from stages.checkpoints.sizes import LayerSize, ModelSizes, alike
from stages.checkpoints.smoothing import check_smoothing
from stages.checkpoints.text_part import make_plain, outside_text, routers
from stages.documents import write_json
from stages.errors import CheckpointError, ConfigError
from stages.fetch import copy_companions
from stages.fields import execution, identity
from stages.imports import no_collection
from stages.layer_patterns import check_matches, check_patterns, matches
from stages.published import PublishedSource
from stages.units import GIB

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier
    from torch.utils.data import DataLoader

VERSION = 1
_HEAD = "lm_head"


class Algorithm(Enum):
    """How weights are rounded; ``none`` leaves the model as it is."""

    none = "none"
    rtn = "rtn"
    gptq = "gptq"


@dataclass(kw_only=True, slots=True)
class RecipeConfig:
    """A quantization recipe in llm-compressor's words."""

    name: str = execution()
    algorithm: Algorithm = identity(Algorithm.none)
    scheme: str | None = identity(None)
    group_size: int | None = identity(None)  # None: the scheme's own
    observer: str = identity("minmax")
    targets: list[str] = identity(factory=lambda: ["Linear"])
    ignore: list[str] = identity(factory=lambda: ["lm_head"])
    dampening_frac: float = identity(0.01)
    block_size: int = identity(128)
    actorder: str | None = identity("static")  # None: columns in their natural order
    smoothing_strength: float | None = identity(None)  # None: no SmoothQuant
    # A checkpoint that somebody else has made, by its name in the model's ``published``, or by its own place
    published: str | None = identity(None, neutral=None)
    source: PublishedSource = identity(factory=PublishedSource, neutral=PublishedSource())

    @property
    def is_published(self) -> bool:
        """Whether it makes nothing, and measures what somebody else has made."""
        return self.published is not None or self.source.is_somewhere

    @property
    def is_base(self) -> bool:
        """Whether it leaves the model as it is."""
        return self.algorithm is Algorithm.none and not self.is_published

    def __post_init__(self) -> None:
        owner = f"recipe {self.name}"
        if self.published is not None and self.source.is_somewhere:
            raise ValueError(f"{owner}: give published, a name in the model's list, or a source of its own")
        if self.is_published and self.algorithm is not Algorithm.none:
            raise ValueError(f"{owner}: a published checkpoint is not quantized here: leave algorithm out")
        if self.algorithm is Algorithm.none:
            if self.scheme is not None or self.smoothing_strength is not None:
                raise ValueError(f"{owner}: algorithm=none takes no scheme and no smoothing_strength")
            return
        if self.scheme not in SUPPORTED:
            raise ValueError(f"{owner}: scheme must be one of {', '.join(SUPPORTED)}; got {self.scheme!r}")
        if self.group_size is not None and not FORMATS[self.scheme].takes_group_size:
            scaled = FORMATS[self.scheme].weights.scaled
            raise ValueError(f"{owner}: {self.scheme} scales {scaled} and takes no group_size")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"{owner}: group_size must be at least 1; got {self.group_size}")
        check_patterns(f"{owner}: targets", self.targets)
        check_patterns(f"{owner}: ignore", self.ignore)
        if self.observer not in ("minmax", "mse"):
            raise ValueError(f"{owner}: observer must be minmax or mse; got {self.observer!r}")
        if self.actorder not in (None, "static"):
            raise ValueError(f"{owner}: actorder must be static or null; got {self.actorder!r}")
        if not 0 <= self.dampening_frac < math.inf:
            raise ValueError(
                f"{owner}: dampening_frac is a share of the second moments' mean and must be 0 or more; got "
                f"{self.dampening_frac}"
            )
        if self.block_size < 1:
            raise ValueError(f"{owner}: block_size must be at least 1; got {self.block_size}")
        if self.smoothing_strength is not None and not 0 <= self.smoothing_strength <= 1:
            raise ValueError(f"{owner}: smoothing_strength must lie in [0, 1]; got {self.smoothing_strength}")


@dataclass(kw_only=True, slots=True)
class QuantizeConfig:
    """A recipe, and the seed of everything random in it."""

    recipe: RecipeConfig = identity()
    seed: int = identity(0)
    device_map: str = execution("auto")


def weight_format(recipe: RecipeConfig) -> Format | None:
    """The format that the recipe makes; None where nothing is quantized."""
    return FORMATS[recipe.scheme].with_group_size(recipe.group_size) if recipe.scheme else None


def family(recipe: RecipeConfig) -> str:
    """What decides names, types and shapes of the tensors that a recipe makes of a model, and how they are read.

    Foretold, so that work can be grouped before a checkpoint is there; an engine compares the checkpoints themselves.
    """
    return json.dumps([repr(weight_format(recipe)), sorted(recipe.targets), sorted(recipe.ignore)])


def needs_calibration(recipe: RecipeConfig) -> bool:
    """Whether the recipe looks at activations: GPTQ, SmoothQuant, or static activation scales."""
    quantized = weight_format(recipe)
    if quantized is None:
        return False
    return recipe.algorithm is Algorithm.gptq or recipe.smoothing_strength is not None or quantized.needs_calibration


def is_targeted(name: str, targets: Iterable[str], ignore: Iterable[str]) -> bool:
    """Whether llm-compressor quantizes the linear layer ``name``; ``re:`` starts a regular expression."""
    return matches(name, targets) and not matches(name, ignore)


def check_fits(recipe: RecipeConfig, sizes: ModelSizes) -> None:
    """Raise ValueError, naming the remedy, for a recipe that a model of those layers cannot have."""
    if weight_format(recipe) is None:
        return
    if not sizes.linears:
        raise ValueError(
            f"recipe {recipe.name}: no layer of the model's blocks is a linear one (GPT-2's are Conv1D, stored the "
            "other way round), so there is nothing to quantize; evaluate it as it is"
        )
    if sizes.ties_head and is_targeted(_HEAD, recipe.targets, recipe.ignore):
        raise ValueError(f"recipe {recipe.name}: keep {_HEAD} in ignore, this model ties it to its embeddings")
    check_group_size(recipe, sizes)


def check_group_size(recipe: RecipeConfig, sizes: ModelSizes) -> None:
    """Raise ValueError, naming layers and sizes that fit, unless the group size divides every targeted layer."""
    quantized = weight_format(recipe)
    if quantized is None or (group_size := quantized.weights.columns_per_scale) is None:
        return
    columns = {
        alike(name): size.columns
        for name, size in sizes.linears.items()
        if is_targeted(name, recipe.targets, recipe.ignore)
    }
    misfits = {layer: width for layer, width in columns.items() if width % group_size}
    if misfits:
        fitting = [size for size in (16, 32, 64, 128, 256) if not any(width % size for width in columns.values())]
        named = ", ".join(f"{layer} ({width} inputs)" for layer, width in misfits.items())
        advice = f"group sizes that fit: {', '.join(map(str, fitting))}" if fitting else "no usual group size fits"
        if not quantized.takes_group_size:
            advice = f"{recipe.scheme} has no other: add these layers to ignore"
        raise ValueError(f"recipe {recipe.name}: group_size {group_size} does not divide {named}; {advice}")


def check_layers(recipe: RecipeConfig, layers: Collection[str]) -> None:
    """Raise ValueError, naming what may have been meant, where the recipe means layers that the model has not."""
    check_matches(f"recipe {recipe.name}: targets", recipe.targets, layers)
    check_matches(f"recipe {recipe.name}: ignore", recipe.ignore, layers)
    if not any(is_targeted(layer, recipe.targets, recipe.ignore) for layer in layers):
        raise ValueError(f"recipe {recipe.name}: ignore leaves none of the layers that targets names: take some out")


def prepare(config: QuantizeConfig) -> None:
    """Import what takes longest, while somebody else has the GPU."""
    with no_collection():
        from llmcompressor import oneshot  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def quantize(config: QuantizeConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write the compressed checkpoint; metrics ``size_gib``, ``compression_ratio`` (bytes of the base as loaded / own),
    ``num_gptq_layers`` and ``num_rounded_layers`` (those of them that GPTQ rounded to nearest; None without GPTQ).

    Every file but the weights, their config and ``recipe.yaml`` is the base model's own, byte for byte.
    Raises ConfigError for a recipe that does not fit the model, and where most layers are rounded to nearest;
    CheckpointError for weights that are no numbers.
    """
    with no_collection():
        from llmcompressor import oneshot
        from llmcompressor.core import reset_session
        from transformers import AutoTokenizer, set_seed

    recipe, model_dir = config.recipe, inputs["model"]
    with _as_config_error():
        check_fits(recipe, describe(model_dir).sizes)
    num_base_bytes = _check_can_be_made(recipe, model_dir)
    check_finite(model_dir)
    set_seed(config.seed)
    model = load_model(model_dir, splits_experts=True, dtype="auto", device_map=config.device_map)
    make_plain(model)
    make_saveable(model)
    kept = [*outside_text(model), *routers(model)]
    modifiers = _build_modifiers(recipe, kept)
    if recipe.smoothing_strength is not None:
        check_smoothing(f"recipe {recipe.name}", model, modifiers[0], read_sequences(inputs["calibration"])[0])
    with fast_bf16_linear(), tensor_core_hessians(), rounded_layers() as rounded:
        oneshot(
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(model_dir),
            recipe=modifiers,
            dataset=_load_calibration(inputs["calibration"]) if needs_calibration(recipe) else None,
        )
    _refuse_rounding(recipe, rounded)
    model.save_pretrained(out, save_compressed=True)
    reset_session()  # llm-compressor keeps the model in a global otherwise
    _rewrite_recipe(out / "recipe.yaml")
    _ignore(out, kept)
    copy_companions(model_dir, out)
    num_bytes = num_stored_bytes(read_tensor_infos(out))
    return {
        "size_gib": num_bytes / GIB,
        "compression_ratio": num_base_bytes / num_bytes,
        **_gptq_metrics(recipe, rounded),
    }


def _check_can_be_made(recipe: RecipeConfig, model_dir: Path) -> int:
    """Make the checkpoint on the meta device, before a weight is read; bytes of the base as it is loaded.

    Raises ConfigError for a recipe that means layers which the model has not, or that does not fit those it has.
    """
    from compressed_tensors.compressors.format import infer_module_format
    from torch.nn import Linear

    base = loaded_model(model_dir)
    kept = [*outside_text(base.model), *routers(base.model)]
    with _as_config_error():
        check_layers(recipe, loaded_layers(base.model))
        check_group_size(recipe, _linear_sizes(base.model, kept))
    rounding: Any = _build_modifiers(recipe, kept)[-1]
    groups = {}
    for name, scheme in rounding.config_groups.items():
        groups[name] = {**scheme.model_dump(mode="json"), "format": infer_module_format(Linear, scheme).value}
    try:
        foretell(base, Intent({"config_groups": groups, "ignore": rounding.ignore}))
    except CheckpointError as error:
        raise ConfigError(f"recipe {recipe.name}: {error}") from error
    return base.num_bytes


def _linear_sizes(model: Any, kept: Collection[str]) -> ModelSizes:
    """Of the layers that a quantizer meets, each expert's among them."""
    from torch.nn import Linear

    found = {
        name: LayerSize(1, *module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name not in kept
    }
    return ModelSizes(found, 0, None, False)


def _gptq_metrics(recipe: RecipeConfig, rounded: Rounded) -> dict[str, float | None]:
    is_gptq = recipe.algorithm is Algorithm.gptq
    return {
        "num_gptq_layers": rounded.num_layers if is_gptq else None,
        "num_rounded_layers": rounded.num_rounded if is_gptq else None,
    }


def _refuse_rounding(recipe: RecipeConfig, rounded: Rounded) -> None:
    """A checkpoint most of which GPTQ has not made is none of its."""
    if rounded.num_rounded > rounded.num_layers / 2:
        raise ConfigError(
            f"recipe {recipe.name}: GPTQ rounded {rounded.num_rounded} of {rounded.num_layers} layers to nearest, as "
            "the second moments of their inputs have no inverse: raise recipe.dampening_frac (it is "
            f"{recipe.dampening_frac:g}), calibrate on more tokens, or ask for algorithm=rtn"
        )


@contextmanager
def _as_config_error() -> Iterator[None]:
    """What a recipe cannot be is told as such, whoever finds it."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _build_modifiers(recipe: RecipeConfig, kept: Iterable[str] = ()) -> "list[Modifier]":
    """llm-compressor's modifiers; ``kept`` layers are ignored as well."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    scheme = preset_name_to_scheme(str(recipe.scheme), recipe.targets)
    overrides: dict[str, Any] = {
        "observer": recipe.observer,
        "group_size": recipe.group_size or scheme.weights.group_size,
    }
    scheme.weights = scheme.weights.model_copy(update=overrides)
    shared: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": [*recipe.ignore, *kept]}
    modifiers: list[Modifier] = []
    if recipe.smoothing_strength is not None:
        modifiers.append(SmoothQuantModifier(smoothing_strength=recipe.smoothing_strength))
    if recipe.algorithm is Algorithm.gptq:
        order: dict[str, Any] = {
            "block_size": recipe.block_size,
            "dampening_frac": recipe.dampening_frac,
            "actorder": recipe.actorder,
        }
        modifiers.append(GPTQModifier(**shared, **order))
    else:
        modifiers.append(QuantizationModifier(**shared))
    return modifiers


def _ignore(out: Path, kept: Collection[str]) -> None:
    """compressed-tensors names in config.json what it left out of a class's layers, not of the classes under it."""
    described = read_description(out / CONFIG)
    ignored = described["quantization_config"]["ignore"]
    ignored += [layer for layer in kept if layer not in ignored]
    write_json(out / CONFIG, described, indent=2)


def _rewrite_recipe(path: Path) -> None:
    """llm-compressor writes SmoothQuant's mappings as Python tuples, which safe YAML loaders refuse."""
    path.write_text(yaml.safe_dump(yaml.full_load(path.read_text()), sort_keys=False))


def _load_calibration(calibration_dir: Path) -> "DataLoader[Any]":
    """One unpadded sequence a batch: ``input_ids`` and ``attention_mask`` of shape (1, num_tokens)."""
    import torch
    from torch.utils.data import DataLoader

    rows = read_sequences(calibration_dir)
    samples: Any = [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))} for ids in rows]
    return DataLoader(samples, batch_size=None)
