"""What a model is, from config.json and the headers of its safetensors alone, without torch: plan and fetch ask it."""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.checkpoints.files import CONFIG
from stages.checkpoints.headers import TensorInfo, num_elements, read_tensor_infos
from stages.checkpoints.shape import read_description
from stages.checkpoints.sizes import Heads, LayerSize, ModelSizes

# One meaning under the names that architectures give it.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "emb_dim"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "num_attention_groups"),
    "head_dim": ("head_dim", "attention_head_dim"),
    "num_positions": ("max_position_embeddings", "n_positions"),
    "vocab_size": ("vocab_size",),
}
_TEXT_PARTS = ("text_config", "llm_config", "language_config")  # of a model that also sees or hears
_OTHER_PARTS = re.compile(r"vision|visual|image|audio|speech|projector|connector|aligner", re.IGNORECASE)
_BLOCK = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
_EXPERTS = ".experts."
_NO_TABLE = re.compile(r"position|wpe|token_type|per_layer", re.IGNORECASE)
_WITHOUT_KEYS = ("mamba", "ssm", "attn_layer", "layers_block_type", "hybrid")  # layers of another kind, in own words
_UNUSUAL = {"F32": "FP32", "F16": "FP16", "F64": "FP64"}
_STRETCHED = ("linear", "dynamic", "yarn")  # kinds of RoPE whose factor widens what max_position_embeddings says


@dataclass(frozen=True)
class ModelDescription:
    """A model's ``config.json`` and the headers of its weights, none where it was described without them."""

    config: Mapping[str, Any]
    infos: Mapping[str, TensorInfo] = field(default_factory=dict)

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the config that describes the language model."""
        return next((part for name in _TEXT_PARTS if isinstance(part := self.config.get(name), dict)), self.config)

    @property
    def model_type(self) -> str | None:
        found = self.config.get("model_type")
        return found if isinstance(found, str) else None

    @property
    def architecture(self) -> str:
        """The name of its class, or of its type, to show."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else str(self.model_type)

    @property
    def num_positions(self) -> int | None:
        """Tokens that fit its context; None where its config does not limit them."""
        if self.text.get("alibi") or (most := self.size("num_positions")) is None:
            return None
        scaling = self.text.get("rope_scaling") or self.text.get("rope_parameters") or {}
        if not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type")) not in _STRETCHED:
            return most
        factor, first = scaling.get("factor"), scaling.get("original_max_position_embeddings")
        if not isinstance(factor, int | float):
            return most
        return max(most, int((first if isinstance(first, int) else most) * factor))

    @property
    def ties_head(self) -> bool | None:
        """Whether its output head is its table of embeddings; None where neither config nor weights say it."""
        said = {part.get("tie_word_embeddings") for part in (self.config, self.text)} & {True, False}
        if len(said) == 1:
            return bool(said.pop())
        return len(self.tables) == 1 if self.infos else None

    @property
    def tables(self) -> list[str]:
        """The tensors with a row for each token: embeddings, and the output head where it is stored."""
        outside = {name: info for name, info in self.infos.items() if not _BLOCK.match(name) and len(info.shape) == 2}
        others = (_OTHER_PARTS, _NO_TABLE)
        rows = {
            name: info.shape[0] for name, info in outside.items() if not any(pattern.search(name) for pattern in others)
        }
        most = max(rows.values(), default=0)
        return [name for name, num_rows in rows.items() if 2 * num_rows > most]  # one of both may be padded

    @property
    def dtype(self) -> str | None:
        """The type, in safetensors' words, that most of its bytes have."""
        num_bytes: dict[str, int] = {}
        for info in self.infos.values():
            num_bytes[info.dtype] = num_bytes.get(info.dtype, 0) + info.num_bytes
        return max(num_bytes, key=num_bytes.__getitem__, default=None)

    @cached_property
    def sizes(self) -> ModelSizes:
        """Its layers by what is stored."""
        loaded = {name: info for name, info in self.infos.items() if name not in self.unread}
        mixtures = {name.partition(_EXPERTS)[0] for name in loaded if _EXPERTS in name}
        linears = {
            name.removesuffix(".weight"): size
            for name, info in loaded.items()
            if (size := _linear(name, info)) and not _is_router(name, mixtures)
        }
        if any(self._is_transposed(name) for name in linears):  # GPT-2's Conv1D, which no quantizer here takes
            linears = {}
        num_all = sum(map(num_elements, loaded.values())) - self._num_in_second_table
        num_in_linears = sum(size.num_elements for size in linears.values())
        num_others = num_all - num_in_linears
        return ModelSizes(linears, num_others, self.token_elements, bool(self.ties_head), self.heads)

    @property
    def heads(self) -> Heads | None:
        """Of ordinary attention; None where the config does not say it."""
        heads, hidden = self.size("num_heads"), self.size("hidden_size")
        if heads is None or hidden is None or "kv_lora_rank" in self.text:
            return None
        return Heads(heads, self._num_kv_heads(heads), self.size("head_dim") or hidden // heads)

    @property
    def token_elements(self) -> int | None:
        """Keys and values of one token, over all layers; None where the config does not say them."""
        latent, rotary = self.text.get("kv_lora_rank"), self.text.get("qk_rope_head_dim")
        layers, heads, hidden = (self.size(name) for name in ("num_layers", "num_heads", "hidden_size"))
        if layers is None or heads is None or hidden is None or self._has_unknown_layers:
            return None
        if isinstance(latent, int) and isinstance(rotary, int):  # one compressed vector in place of both
            return layers * (latent + rotary)
        return 2 * self._num_attending(layers) * self._num_kv_heads(heads) * (self.size("head_dim") or hidden // heads)

    @property
    def unread(self) -> list[str]:
        """Tensors that no loader takes: layers beyond the model's own, and what old files keep of a computation."""
        num_layers = self.size("num_layers")
        found = [name for name, info in self.infos.items() if _is_leftover(name, info)]
        for name in self.infos:
            block = _BLOCK.match(name)
            is_text = block is not None and block[1].endswith("layers") and not _OTHER_PARTS.search(block[1])
            if block and is_text and num_layers is not None and int(block[2]) >= num_layers:
                found.append(name)
        return found

    @property
    def notes(self) -> list[str]:
        """What a reader of its results must know, a sentence each."""
        found = []
        if (name := _UNUSUAL.get(str(self.dtype))) is not None:
            found.append(f"The base's weights are stored in {name}: its size, and every ratio, is against that.")
        if unread := self.unread:
            more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            found.append(f"{unread[0]}{more} of the base's files are not loaded and in no checkpoint.")
        return found

    @property
    def irregular(self) -> list[str]:
        """Tensors that a block lacks while others have them beside the same ones.

        An architecture may mean that: only its loader tells.
        """
        children: dict[tuple[str, str], dict[str, set[str]]] = {}
        for name in self.infos:
            if block := _BLOCK.match(name):
                module, _, inside = block[3].rpartition(".")
                parent, _, child = module.rpartition(".")
                stack = children.setdefault((block[1], parent), {})
                stack.setdefault(block[2], set()).add(f"{child}.{inside}")
        return sorted(
            ".".join(part for part in (prefix, number, parent, child) if part)
            for (prefix, parent), stack in children.items()
            for number, own in stack.items()
            for child in set().union(*(other - own for other in stack.values() if own < other))
        )

    @property
    def _num_in_second_table(self) -> int:
        tables = self.tables
        return num_elements(self.infos[tables[0]]) if self.ties_head and len(tables) == 2 else 0

    def _is_transposed(self, layer: str) -> bool:
        """Whether a weight has a bias for each column: stored as (inputs, outputs)."""
        weight, bias = self.infos.get(f"{layer}.weight"), self.infos.get(f"{layer}.bias")
        if weight is None or bias is None or len(weight.shape) != 2:
            return False
        return bias.shape == weight.shape[1:] != weight.shape[:1]

    def size(self, meaning: str) -> int | None:
        """What the config says under one of the names of ``_ALIASES``; None where it does not say it."""
        places = [self.text, *(part for part in [self.text.get("attn_config")] if isinstance(part, dict))]
        found = (place.get(name) for place in places for name in _ALIASES[meaning])
        return next((size for size in found if isinstance(size, int) and not isinstance(size, bool) and size > 0), None)

    def _num_kv_heads(self, num_heads: int) -> int:
        if self.text.get("multi_query") and not self.text.get("new_decoder_architecture"):
            return 1
        return self.size("num_kv_heads") or num_heads

    @property
    def _has_unknown_layers(self) -> bool:
        """Whether some layers keep a state in place of keys and values, and ``layer_types`` does not say which."""
        return "layer_types" not in self.text and any(str(name).startswith(_WITHOUT_KEYS) for name in self.text)

    def _num_attending(self, num_layers: int) -> int:
        kinds = self.text.get("layer_types")
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            return num_layers
        return sum("attention" in str(kind) and "linear" not in str(kind) for kind in kinds)


def describe(model_dir: Path, has_weights: bool = True) -> ModelDescription:
    """Read a model's description; DataError or CheckpointError, naming the file, for one that is damaged."""
    config = read_description(model_dir / CONFIG)
    return ModelDescription(config, read_tensor_infos(model_dir) if has_weights else {})


def _is_leftover(name: str, info: TensorInfo) -> bool:
    """Frequencies and masks that old files keep and a model computes itself."""
    is_mask = name.endswith((".bias", ".masked_bias")) and len(info.shape) in (0, 4)
    return is_mask or name.endswith("rotary_emb.inv_freq")


def _is_router(name: str, mixtures: Set[str]) -> bool:
    """Whether it says which experts answer, beside the experts themselves: that is never quantized."""
    return name.removesuffix(".weight").rpartition(".")[0] in mixtures


def _linear(name: str, info: TensorInfo) -> LayerSize | None:
    """The size of a block's linear layer, or of a layer of experts stored as one; None for any other tensor."""
    block = _BLOCK.match(name)
    if block is None or _OTHER_PARTS.search(block[1]) or "embed" in name or "norm" in name or "bias" in name:
        return None
    if len(info.shape) == 2 and name.endswith(".weight"):
        return LayerSize(1, info.shape[0], info.shape[1])
    return (
        LayerSize(info.shape[0], info.shape[1], info.shape[2]) if len(info.shape) == 3 and "experts" in name else None
    )
