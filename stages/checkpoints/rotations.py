"""Rotations of activations that a checkpoint's ``transform_config`` asks for.

transformers drops them without a word, and what it then computes is noise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.checkpoints.headers import TensorInfo
from stages.errors import CheckpointError, one_line
from stages.imports import no_collection


def attach_rotations(model: Any, config: Mapping[str, Any] | None) -> list[str]:
    """Add the rotations that are computed at run time, and return the names of their parameters, shared ones once.

    Those fused into weights are in them already.  Raises CheckpointError for rotations that compressed-tensors cannot
    attach.
    """
    if not config or not config.get("config_groups"):
        return []
    with no_collection():
        from compressed_tensors.transform import TransformConfig, TransformFactory

    before = {name for name, _ in model.named_parameters()}
    try:
        for name, scheme in TransformConfig.model_validate(config).config_groups.items():
            scheme.apply = [args for args in scheme.apply if args.is_online()]
            TransformFactory.from_scheme(scheme, name=name).apply_to_model(model, use_tqdm=False)
    except Exception as error:
        raise CheckpointError(
            "the checkpoint's rotations (transform_config) cannot be attached, and without them it computes noise: "
            f"{one_line(error)}"
        ) from error
    return [name for name, _ in model.named_parameters() if name not in before]


def fused_into(model: Any, config: Mapping[str, Any] | None) -> set[str]:
    """Names of the modules whose weights are rotated in the files."""
    if not config or not config.get("config_groups"):
        return set()
    from compressed_tensors.transform import TransformConfig
    from compressed_tensors.utils import match_named_modules

    schemes = TransformConfig.model_validate(config).config_groups.values()
    fused = [args for scheme in schemes for args in scheme.apply if not args.is_online()]
    return {name for args in fused for name, _ in match_named_modules(model, args.targets, args.ignore)}


def load_rotations(
    model_dir: Path, model: Any, config: Mapping[str, Any] | None, infos: Mapping[str, TensorInfo]
) -> None:
    """Attach rotations to a model that is loaded, with the matrices that are stored."""
    import torch
    from safetensors import safe_open

    for name in attach_rotations(model, config):
        if name not in infos:
            raise CheckpointError(f"{model_dir}: the rotation {name} is missing; make or fetch the checkpoint again")
        with safe_open(infos[name].file, framework="pt") as tensors, torch.no_grad():
            model.get_parameter(name).copy_(tensors.get_tensor(name))
