"""What a checkpoint says of itself: how it is quantized, and by which steps it was made."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.checkpoints.files import CONFIG
from stages.checkpoints.shape import read_description
from stages.errors import CheckpointError

RECIPE = "recipe.yaml"
_METHOD = "compressed-tensors"
_NEAREST = frozenset({"QuantizationModifier"})
_MOVED = frozenset({"GPTQModifier", "AutoRoundModifier"})  # weights make up for each other's errors
_RESCALED = frozenset({"SmoothQuantModifier", "AWQModifier"})
_HOW_SCALED = ("observer", "observer_kwargs", "actorder")  # of no concern to who reads the weights


@dataclass(frozen=True)
class Intent:
    """``quantization``: what ``config.json`` says; ``modifiers``: llm-compressor's steps, None where nobody tells;
    ``is_own``: whether it was made here, with the versions that are here.
    """

    quantization: Mapping[str, Any]
    modifiers: frozenset[str] | None = None
    is_own: bool = False

    @property
    def is_nearest(self) -> bool:
        """Whether every weight is the nearest that its scale allows."""
        return self.modifiers is not None and self.modifiers <= _NEAREST

    @property
    def may_rescale(self) -> bool:
        """Whether channels may have been rescaled, with norms and biases that make up for it."""
        return self.modifiers is None or bool(self.modifiers & _RESCALED)

    @property
    def is_comparable(self) -> bool:
        """Whether weights still are those of the base, but for rounding and scales of channels."""
        if self.quantization.get("transform_config"):
            return False
        return self.modifiers is None or self.modifiers <= _NEAREST | _MOVED | _RESCALED

    @property
    def remedy(self) -> str:
        """What to do about a checkpoint that is not what it should be."""
        return "quantize again" if self.modifiers is not None else "fetch it again, or take another checkpoint"


def read_intent(checkpoint_dir: Path, *, needs_recipe: bool = False) -> Intent:
    """Read ``config.json`` and, where there is one, ``recipe.yaml``, which must not say otherwise; a checkpoint of our
    own has one.

    Raises CheckpointError for a checkpoint of another method, and where either is missing or damaged.
    """
    quantization = read_description(checkpoint_dir / CONFIG).get("quantization_config")
    if not isinstance(quantization, dict):
        raise CheckpointError(f"{checkpoint_dir}: {CONFIG} holds no quantization_config; make or fetch it again")
    if (method := quantization.get("quant_method")) != _METHOD:
        raise CheckpointError(f"{checkpoint_dir}: quantization method {method!r} is not {_METHOD}")
    if not needs_recipe and not (checkpoint_dir / RECIPE).is_file():
        return Intent(quantization)
    modifiers = _read_modifiers(checkpoint_dir)
    _check_groups(checkpoint_dir, modifiers, quantization)
    return Intent(quantization, frozenset(modifiers), needs_recipe)


def _read_modifiers(checkpoint_dir: Path) -> dict[str, dict[str, Any]]:
    """Their arguments, by name, in the order of the recipe."""
    try:
        stages = yaml.safe_load((checkpoint_dir / RECIPE).read_text())
        named = [item for stage in stages.values() for kinds in stage.values() for item in kinds.items()]
        return {name: dict(arguments or {}) for name, arguments in named}
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{checkpoint_dir}: {RECIPE} is missing or unreadable; quantize again") from error


def _check_groups(
    checkpoint_dir: Path, modifiers: Mapping[str, Mapping[str, Any]], quantization: Mapping[str, Any]
) -> None:
    """Engines read the one, and the weights were made by the other."""
    try:
        made = [_words(group) for arguments in modifiers.values() for group in _groups(arguments)]
        if not made:
            return
        told = [_words(group) for group in quantization["config_groups"].values()]
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{checkpoint_dir}: config_groups are unreadable ({error}); quantize again") from error
    if sorted(made, key=repr) != sorted(told, key=repr):
        other = f"another format than {RECIPE}{_difference(made, told)}"
        raise CheckpointError(f"{checkpoint_dir}: {CONFIG} describes {other}; quantize again")


def _groups(arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a modifier quantizes to, also where it says so by the name of one of compressed-tensors' presets."""
    if groups := arguments.get("config_groups"):
        return list(groups.values())
    if not isinstance(scheme := arguments.get("scheme"), str):
        return []
    from compressed_tensors.quantization import preset_name_to_scheme

    return [preset_name_to_scheme(scheme, ["Linear"]).model_dump(mode="json")]


def _words(group: Mapping[str, Any]) -> dict[str, Any]:
    kinds = ("weights", "input_activations", "output_activations")
    return {
        f"{kind}.{name}": value
        for kind in kinds
        for name, value in (group.get(kind) or {}).items()
        if name not in _HOW_SCALED and value is not None
    }


def _difference(made: list[dict[str, Any]], told: list[dict[str, Any]]) -> str:
    """Of one group: which word, and how it reads in both."""
    if len(made) != 1 or len(told) != 1:
        return f": {len(told)} groups, not {len(made)}"
    (one,), (other,) = made, told
    name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
    return f": {name} is {other.get(name)}, not {one.get(name)}"
