"""What a quantized checkpoint's files must look like: read from headers and scales, without loading the model."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from stages.checkpoints.formats import Format, described, format_of
from stages.checkpoints.headers import TensorInfo, num_stored_bytes, read_tensor_infos
from stages.errors import CheckpointError
from stages.gate.artifact import Check
from stages.quantize import is_targeted

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 3  # names listed in a detail; a broken checkpoint may have thousands


class Intent(NamedTuple):
    """What ``recipe.yaml`` promises of the weights."""

    targets: list[str]
    ignore: list[str]
    format: Format


class Files(NamedTuple):
    """The tensors of the base and of the checkpoint, and the linear layers that the recipe targets, by name."""

    base: dict[str, TensorInfo]
    checkpoint: dict[str, TensorInfo]
    targeted: list[str]
    intent: Intent


def read_files(base_dir: Path, checkpoint_dir: Path) -> Files:
    """Read every header; CheckpointError for files that are damaged or missing."""
    base, checkpoint = read_tensor_infos(base_dir), read_tensor_infos(checkpoint_dir)
    intent = _read_intent(checkpoint_dir)
    # An output head tied to the embeddings is not stored; should it be quantized, its tensors show up as new.
    linears = [name for name in _linear_names(base_dir) if f"{name}.weight" in base]
    targeted = [name for name in linears if is_targeted(name, intent.targets, intent.ignore)]
    return Files(base, checkpoint, targeted, intent)


def check_weights(files: Files, max_size_deviation: float) -> Iterator[Check]:
    """Every check that needs no forward pass."""
    yield _check_targeted(files)
    yield _check_others(files)
    yield _check_scales(files)
    yield _check_size(files, max_size_deviation)


def size_ratio(files: Files) -> float:
    """Bytes of the checkpoint / bytes of the base."""
    return num_stored_bytes(files.checkpoint) / num_stored_bytes(files.base)


def _read_intent(checkpoint_dir: Path) -> Intent:
    try:
        stages = yaml.safe_load((checkpoint_dir / "recipe.yaml").read_text())
        modifiers = [modifier for stage in stages.values() for kinds in stage.values() for modifier in kinds.values()]
        (modifier,) = (modifier for modifier in modifiers if "config_groups" in modifier)
        (group,) = modifier["config_groups"].values()
        config = json.loads((checkpoint_dir / "config.json").read_text())
        packing, targets = config["quantization_config"]["format"], group["targets"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{checkpoint_dir}: recipe.yaml or quantization_config is missing or unreadable"
        ) from error
    return Intent(targets, modifier["ignore"], _read_format(checkpoint_dir, group, packing, config))


def _read_format(checkpoint_dir: Path, group: Mapping[str, Any], packing: str, config: Mapping[str, Any]) -> Format:
    """What the recipe promises, which must be what engines will read in ``config.json``."""
    try:
        promised, written = described(group, packing), format_of(config)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint_dir}: {error}") from error
    if written != promised:
        raise CheckpointError(f"{checkpoint_dir}: config.json describes another format than recipe.yaml")
    return promised


def _linear_names(base_dir: Path) -> list[str]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_dir))
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def _check_targeted(files: Files) -> Check:
    wrong = [name for name in files.targeted if not _is_quantized(name, files)]
    num_right = len(files.targeted) - len(wrong)
    detail = _list(wrong, "not quantized as the recipe says")
    return Check("targeted_layers_quantized", not wrong and num_right > 0, num_right, len(files.targeted), detail)


def _is_quantized(name: str, files: Files) -> bool:
    """Whether the layer's tensors are those of the promised format, by name, type and shape, and no others."""
    base = files.base[f"{name}.weight"]
    rows, columns = base.shape
    promised = files.intent.format.stored_tensors(rows, columns, base.dtype)
    prefix = f"{name}."
    stored = {
        tensor.removeprefix(prefix): (info.dtype, info.shape)
        for tensor, info in files.checkpoint.items()
        if tensor.startswith(prefix) and tensor != f"{name}.bias"
    }
    return stored == promised


def _check_others(files: Files) -> Check:
    """Every other tensor keeps its type and shape; embeddings and output head also keep their bytes."""
    others = [name for name in files.base if name.removesuffix(".weight") not in files.targeted]
    changed = [name for name in others if not _is_like(files.base[name], files.checkpoint.get(name))]
    kept = [name for name in others if name not in changed and len(files.base[name].shape) > 1]
    changed += [name for name in kept if not _is_equal(name, files)]
    added = files.checkpoint.keys() - files.base.keys()
    changed += sorted(name for name in added if name.rpartition(".")[0] not in files.targeted)
    detail = _list(changed, "changed, missing or new")
    return Check("other_tensors_untouched", not changed, len(changed), 0, detail)


def _is_like(base: TensorInfo, other: TensorInfo | None) -> bool:
    return other is not None and (other.dtype, other.shape) == (base.dtype, base.shape)


def _is_equal(name: str, files: Files) -> bool:
    import torch

    base, other = (next(_read_tensors(infos, [name])) for infos in (files.base, files.checkpoint))
    return bool(torch.equal(base, other))


def _check_scales(files: Files) -> Check:
    names = [name for name in files.checkpoint if name.endswith("_scale")]
    scales = zip(names, _read_tensors(files.checkpoint, names), strict=True)
    wrong = [name for name, scale in scales if not _are_finite_positive(scale)]
    return Check("scales_finite_positive", not wrong and bool(names), len(wrong), 0, _list(wrong, "hold a bad scale"))


def _are_finite_positive(scales: "Tensor") -> bool:
    import torch

    if scales.dtype is torch.uint8:  # E8M0: exponents of two, of which 255 means NaN
        return bool((scales < 255).all())
    scales = scales.float()  # torch compares no FP8
    return bool(torch.isfinite(scales).all() and (scales > 0).all())


def _read_tensors(infos: Mapping[str, TensorInfo], names: Iterable[str]) -> Iterator[Any]:
    from safetensors import safe_open

    for name in names:
        with safe_open(infos[name].file, framework="pt") as tensors:
            yield tensors.get_tensor(name)


def _check_size(files: Files, max_deviation: float) -> Check:
    expected = num_stored_bytes(files.base)
    for name in files.targeted:
        base = files.base[f"{name}.weight"]
        rows, columns = base.shape
        expected += files.intent.format.num_bytes(rows, columns, base.dtype) - base.num_bytes
    expected_ratio = expected / num_stored_bytes(files.base)
    ratio = size_ratio(files)
    passed = abs(ratio / expected_ratio - 1) <= max_deviation
    return Check("size_ratio", passed, ratio, expected_ratio, f"at most {max_deviation:.0%} apart")


def _list(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more} {what}"
