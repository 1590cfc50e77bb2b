"""A model as its loader makes it, on the meta device: names, dtypes and shapes, without a weight being read."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoints.headers import TensorInfo, read_tensor_infos
from stages.checkpoints.linear_experts import expert_classes, linear_experts, linearized
from stages.checkpoints.loaded import built_on_meta, quiet

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LoadedModel:
    """The model of ``model_dir`` as it is in memory, every expert a linear layer of its own.

    ``model``: on the meta device; ``infos``: what is stored, by stored name; ``tensors``: what is loaded, by loaded
    name, each once; ``tied``: names of tensors that are another one; ``layers``: what stored layers are called.
    """

    model_dir: Path
    model: Any
    infos: Mapping[str, TensorInfo]
    tensors: Mapping[str, "Tensor"]
    tied: Mapping[str, str]
    names: Mapping[str, str]
    classes: frozenset[type]

    @property
    def num_bytes(self) -> int:
        """Bytes of what is loaded."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @cached_property
    def sources(self) -> dict[str, TensorInfo]:
        """Where tensors are stored as they are loaded, by loaded name; not those of experts that are stored as one."""
        found = {name: self.infos[stored] for stored, name in self.names.items() if name in self.tensors}
        return {name: info for name, info in found.items() if tuple(self.tensors[name].shape) == info.shape}

    @cached_property
    def unread_modules(self) -> set[str]:
        """Stored names of the modules of which nothing is loaded."""
        known = {*self.tensors, *self.tied}
        read = {stored.rpartition(".")[0] for stored, name in self.names.items() if name in known}
        return {stored.rpartition(".")[0] for stored in self.names} - read

    def split_experts(self, owner: str) -> dict[str, "Tensor"]:
        """The linear layers' tensors, by loaded name, of the experts ``owner`` that are stored as one: on the CPU."""
        from llmcompressor.modeling.moe.linear_experts import LinearExperts2D

        fused, config = self._fused.get_submodule(owner), self._fused.config.get_text_config()
        _load_part(self._fused, self.infos, owner)
        linear = LinearExperts2D.get_linear_experts_cls(type(fused)).from_experts_module(
            fused, getattr(fused, "config", config)
        )
        found = {f"{owner}.{name}": tensor for name, tensor in linear.state_dict().items()}
        fused.to("meta")
        return found

    @cached_property
    def _fused(self) -> Any:
        return built_on_meta(self.model_dir, self.infos)[0]


def loaded_model(model_dir: Path) -> LoadedModel:
    """Ask the loader; CheckpointError where it cannot build the model or headers are damaged."""
    infos, classes = read_tensor_infos(model_dir), expert_classes(model_dir)
    with linear_experts(classes):
        model, _ = built_on_meta(model_dir, infos)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    known = model.state_dict()
    tensors = {name: tensor for name, tensor in known.items() if name not in tied}
    return LoadedModel(model_dir, model, infos, tensors, tied, loaded_names(model, infos, known), frozenset(classes))


def loaded_names(model: Any, stored: Iterable[str], known: Mapping[str, Any]) -> dict[str, str]:
    """What the loader calls stored tensors, ``known`` being the names that the model has."""
    from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    if any(isinstance(module, LinearExperts2D) for module in model.modules()):
        rules = linearized(rules)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    prefix, names = model.base_model_prefix, dict(known)
    found = {}
    for name in sorted(stored, key=dot_natural_key):
        found[name], _ = rename_source_key(name, renamings, converters, prefix, names)
        if found[name] not in names and name in names:
            found[name], _ = rename_source_key(name, [], [], prefix, names)
    return found


def _load_part(model: Any, infos: Mapping[str, TensorInfo], owner: str) -> None:
    """Read what ``owner`` of a model on the meta device consists of, by the loader's own rules."""
    from safetensors import safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    names = loaded_names(model, infos, model.state_dict())
    own = [stored for stored, name in names.items() if name.startswith(f"{owner}.")]
    with ExitStack() as opened:
        files = {infos[name].file for name in own}
        handles = {file: opened.enter_context(safe_open(file, framework="pt")) for file in files}
        parts = {name: handles[infos[name].file].get_slice(name) for name in own}
        rules = LoadStateDictConfig(dtype=model.dtype, weight_mapping=get_model_conversion_mapping(model))
        with quiet():
            convert_and_load_state_dict_in_model(model=model, state_dict=parts, load_config=rules)
