"""The one way in which a model or a checkpoint is loaded to be computed with.

Nothing is invented, rotations are attached, experts that are stored as linear layers are loaded as such (with their
inputs rounded as when served), and what a checkpoint leaves in 16 bits is meant by the names of its files.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.checkpoints.converted import as_compressed
from stages.checkpoints.headers import TensorInfo, read_tensor_infos
from stages.checkpoints.linear_experts import expert_classes, linear_experts, owner_of
from stages.checkpoints.loadable import dense_arguments
from stages.checkpoints.loaded import built_on_meta, shown
from stages.checkpoints.meta import loaded_names
from stages.checkpoints.rotations import load_rotations
from stages.errors import CheckpointError
from stages.imports import no_collection
from stages.layer_patterns import matches

_METHOD = "compressed-tensors"
_OF_AN_EXPERT = re.compile(r"experts\.\d+\.")


def load_model(model_dir: Path, *, splits_experts: bool = False, **options: Any) -> Any:
    """The model for reading; ``options`` are transformers'.  A quantized one is computed with as when served.

    ``splits_experts``: experts become linear layers also where nothing is quantized.
    Raises CheckpointError where some of the weights would be invented, and for rotations that cannot be attached.
    """
    with no_collection():
        from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir)
    with as_compressed(model_dir, getattr(config, "quantization_config", None) or {}) as readable:
        if readable != model_dir and options.get("dtype", "auto") == "auto":
            options["dtype"] = config.get_text_config().dtype  # scales may be of another
        return _loaded(readable, splits_experts=splits_experts, **options)


def _loaded(model_dir: Path, *, splits_experts: bool, **options: Any) -> Any:
    from transformers import AutoConfig

    infos = read_tensor_infos(model_dir)
    config = AutoConfig.from_pretrained(model_dir)
    quantization = getattr(config, "quantization_config", None) or {}
    is_compressed = quantization.get("quant_method") == _METHOD
    with _as_stored(model_dir, infos, is_compressed or splits_experts):
        if is_compressed:
            config.quantization_config = _in_loaded_names(model_dir, infos, quantization)
        else:
            options = dense_arguments(quantization) | options
        rotations = quantization.get("transform_config") if is_compressed else None
        with _packed_as_read():
            model, said = owner_of(config).from_pretrained(
                model_dir, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    _check_nothing_invented(model_dir, said)
    if is_compressed and options.get("dtype", "auto") != "auto":
        _cast(model, options["dtype"])
    load_rotations(model_dir, model, rotations, infos)
    return model.eval()


@contextmanager
def _as_stored(model_dir: Path, infos: Mapping[str, TensorInfo], splits_experts: bool) -> Iterator[None]:
    if not splits_experts or not any(_OF_AN_EXPERT.search(name) for name in infos):
        yield
        return
    with linear_experts(expert_classes(model_dir)):
        yield


@contextmanager
def _packed_as_read() -> Iterator[None]:
    """Some classes would fill a ``weight`` at random where packed codes are stored, and fall over its absence."""
    from transformers import PreTrainedModel

    plain = PreTrainedModel._initialize_weights

    def initialize(self: Any, module: Any, *options: Any, **named: Any) -> None:
        if not hasattr(module, "quantization_scheme"):
            plain(self, module, *options, **named)

    PreTrainedModel._initialize_weights = initialize
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = plain


def _in_loaded_names(
    model_dir: Path, infos: Mapping[str, TensorInfo], quantization: Mapping[str, Any]
) -> dict[str, Any]:
    """What is ignored also by the names of the loader, who may call layers otherwise than the files do."""
    ignored = list(quantization.get("ignore") or [])
    model, _ = built_on_meta(model_dir, infos)
    return {
        **quantization,
        "ignore": [*ignored, *renamed_layers(loaded_names(model, infos, model.state_dict()), ignored)],
    }


def renamed_layers(names: Mapping[str, str], patterns: list[str]) -> list[str]:
    """Loaded names of the layers that the patterns mean by the names in the files; ``names``: loaded by stored."""
    meant = [pattern for pattern in patterns if pattern != "Linear"]
    layers = {stored.rpartition(".")[0]: name.rpartition(".")[0] for stored, name in names.items()}
    return [name for stored, name in layers.items() if stored != name and matches(stored, meant)]


def _cast(model: Any, dtype: Any) -> None:
    """Of a compressed checkpoint the loader leaves what it renames in the dtype of the files, and a layer in another
    dtype than its inputs computes nothing.
    """
    import torch

    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, parameter in model.named_parameters():
        is_kept = name.endswith("global_scale") or any(part in name for part in kept)
        if parameter.dtype in (torch.bfloat16, torch.float16, torch.float32) and not is_kept:
            parameter.data = parameter.data.to(dtype)


def _check_nothing_invented(model_dir: Path, said: Mapping[str, Any]) -> None:
    if missing := sorted(said["missing_keys"]):
        raise CheckpointError(
            f"{model_dir}: {shown(missing)} missing, and a loader would invent the weights; make or fetch it again"
        )
    if misshapen := sorted(entry if isinstance(entry, str) else entry[0] for entry in said["mismatched_keys"]):
        raise CheckpointError(
            f"{model_dir}: {shown(misshapen)} of another shape than config.json says; make or fetch it again"
        )
