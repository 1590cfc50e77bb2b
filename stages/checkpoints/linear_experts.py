"""Experts as the linear layers that a quantizer makes of them, built and loaded as such.

transformers keeps the experts of a layer in one parameter of three dimensions, which nothing can quantize layer by
layer; checkpoints store two-dimensional ones, and kernels read those.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.checkpoints.architectures import class_of
from stages.errors import CheckpointError

_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}


def owner_of(config: Any) -> Any:
    """The class that builds the language model of a config."""
    import transformers

    named = class_of(config.model_type) if config.model_type else None
    return getattr(transformers, named) if named else transformers.AutoModelForCausalLM


def fused_experts(model: Any) -> dict[str, Any]:
    """The modules of ``model`` that keep the experts of a layer in one, by name."""
    from llmcompressor.modeling.moe.linearize import get_non_linearized_moes

    return dict(get_non_linearized_moes(model))


def expert_classes(model_dir: Path) -> set[type]:
    """The classes of a model's fused experts; empty for a dense model."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir)
    if not any("expert" in name for part in (config, config.get_text_config()) for name in vars(part)):
        return set()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = owner_of(config)._from_config(config)
    return {type(module) for module in fused_experts(model).values()}


@contextmanager
def linear_experts(classes: Iterable[type]) -> Iterator[None]:
    """Within it, transformers builds experts of ``classes`` as linear layers, and reads those that are stored so."""
    from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
    from transformers import modeling_utils

    linear = {each: LinearExperts2D.get_linear_experts_cls(each) for each in classes}
    if not linear:
        yield
        return
    conversions, patches = modeling_utils.get_model_conversion_mapping, modeling_utils.apply_patches

    def rules(model: Any, key_mapping: Any = None, hf_quantizer: Any = None, **options: Any) -> list[Any]:
        plain = linearized(conversions(model, key_mapping, **options))
        return plain if hf_quantizer is None else hf_quantizer.update_weight_conversions(plain)

    modeling_utils.get_model_conversion_mapping = rules
    modeling_utils.apply_patches = lambda: _in_place_of(linear)
    try:
        yield
    except TypeError as error:
        named = ", ".join(each.__name__ for each in linear)
        raise CheckpointError(f"experts of {named} cannot be built as linear layers: {error}") from error
    finally:
        modeling_utils.get_model_conversion_mapping, modeling_utils.apply_patches = conversions, patches


@contextmanager
def _in_place_of(linear: Mapping[type, type]) -> Iterator[None]:
    """While a model is built; transformers' own way imports every model that it has."""
    for each, replacement in linear.items():
        setattr(sys.modules[each.__module__], each.__name__, replacement)
    try:
        yield
    finally:
        for each in linear:
            setattr(sys.modules[each.__module__], each.__name__, each)


def linearized(conversions: Sequence[Any]) -> list[Any]:
    """transformers' rules for names, without fusing: each expert's stored name becomes that of its linear layer."""
    from transformers.core_model_loading import WeightConverter

    found: list[Any] = []
    for rule in conversions:
        if isinstance(rule, WeightConverter) and any("experts" in name for name in rule._original_source_patterns):
            found += _renamings(rule)
        else:
            found.append(rule)
    return found


def _renamings(rule: Any) -> Iterator[Any]:
    """Nothing for a rule that fuses otherwise than one stored matrix after the other."""
    from transformers.core_model_loading import WeightRenaming

    sources, (target, *others) = rule._original_source_patterns, rule._original_target_patterns
    parts = _PARTS.get(target.rpartition(".")[2], ())
    if others or len(parts) != len(sources) or not all(".*." in source for source in sources):
        return
    for source, part in zip(sources, parts, strict=True):
        before, after = source.removesuffix(".weight").replace("\\", "").split(".*.")
        prefix = before.rpartition("experts")[0]
        renaming = WeightRenaming(
            source_patterns=rf"{re.escape(prefix)}experts\.(\d+)\.{re.escape(after)}\.",
            target_patterns=rf"{target.replace(chr(92), '').rpartition('experts')[0]}experts.\1.{part}.",
        )
        renaming.scope_prefix, renaming.base_model_prefix = rule.scope_prefix, rule.base_model_prefix
        yield renaming
