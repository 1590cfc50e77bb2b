"""Refuse at the door what is no model to quantize and evaluate, in one line that says what it is and what would do."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from stages.checkpoints.architectures import class_of, is_listed
from stages.checkpoints.description import ModelDescription, describe
from stages.checkpoints.files import CONFIG, INDEX, WHOLE, first_of
from stages.checkpoints.headers import TensorInfo, digest_of
from stages.checkpoints.quantized import Quantized, read_quantized
from stages.checkpoints.shape import read_description
from stages.errors import CheckpointError, DataError

_OBJECTS = (CONFIG, INDEX, "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZERS = ("tokenizer.json", "*.model", "tokenizer.model*", "vocab.*", "*.tiktoken", "tekken.json", "*.spm")
ADAPTER = "adapter_config.json"
# Where other quantizers write what they did, if not into config.json.
_QUANTIZERS = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|weight_packed|weight_scale(_inv)?|weight_scale_2|absmax|quant_map|.*_blocks)$"
)
_FLOATS = ("F64", "F32", "F16", "BF16")
# What a quantized checkpoint has in common with the model it was made from, by config.json's usual words.
_OF_BASE = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
}
_WRAPPERS = {
    "base_model.model.": "PEFT's, so an adapter was not merged; merge it (merge_and_unload)",
    "module.": "a parallel trainer's; take it off",
    "_orig_mod.": "torch.compile's; take it off",
    "_fsdp_wrapped_module.": "FSDP's; take it off",
    "_forward_module.": "a trainer's; take it off",
}


def check_model_path(path: Path, has_weights: bool = True) -> ModelDescription:
    """The description of a model's directory; DataError or CheckpointError, in one line, for what is not one.

    Without weights only what a prompt is made with is looked at.
    """
    _check_files(path, has_weights)
    if not has_weights:
        return describe(path, has_weights=False)
    _check_not_quantized(path, read_description(path / CONFIG), {})
    model = describe(path)
    _check_not_quantized(path, model.config, model.infos)
    _check_names(path, model)
    _check_tables(path, model)
    return model


def check_quantized_path(path: Path) -> tuple[ModelDescription, Quantized]:
    """Descriptions of a directory with a checkpoint that somebody has quantized; refuses as ``check_model_path``."""
    _check_files(path, has_weights=True)
    model = describe(path)
    _check_names(path, model)
    return model, read_quantized(path, model)


def check_made_of(path: Path, model: ModelDescription, base: ModelDescription) -> None:
    """Raise CheckpointError unless config.json says the same of the checkpoint as of the model it is to be made of."""
    for what, own, wanted in (
        ("architecture", model.architecture, base.architecture),
        *((name, model.size(meaning), base.size(meaning)) for meaning, name in _OF_BASE.items()),
    ):
        if own != wanted:
            raise CheckpointError(
                f"model path {path} is no checkpoint of its base: {what} is {own} and the base's {wanted}; name the "
                "model that it was made from"
            )


def _check_files(path: Path, has_weights: bool) -> None:
    """What can be known before a header is read."""
    if not path.is_dir():
        raise DataError(f"model path {path} is not a directory")
    if has_weights:
        _check_is_whole(path)
        _check_findable(path)
    if not (path / CONFIG).is_file():
        raise DataError(f"model path {path} holds no config.json")
    for file in sorted(file for file in path.glob("*.json") if _is_one_of(file.name, _OBJECTS)):
        read_description(file)
    _check_code(path, read_description(path / CONFIG), has_weights)
    _check_tokenizer(path)


def _check_is_whole(path: Path) -> None:
    """An adapter is no model, whatever lies beside it."""
    adapters = [file.name for file in path.glob("adapter_*")]
    if not adapters or (path / WHOLE).is_file() or (path / INDEX).is_file():
        return
    settings = read_description(path / ADAPTER) if (path / ADAPTER).is_file() else {}
    base = settings.get("base_model_name_or_path")
    raise CheckpointError(
        f"model path {path} is an adapter for {base or 'a base that is not named'} and no model; merge it into its "
        "base (merge_and_unload) and save the whole model"
    )


def _check_findable(path: Path) -> None:
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if not others:
        raise DataError(f"model path {path} holds no *.safetensors; convert the weights with save_pretrained first")
    if not (path / WHOLE).is_file() and not (path / INDEX).is_file():
        raise CheckpointError(
            f"model path {path} holds {first_of(others)}, but neither {WHOLE} nor {INDEX}, by which loaders find the "
            "weights; add the index, or save the model again with save_pretrained"
        )


def _check_code(path: Path, config: Mapping[str, Any], has_weights: bool) -> None:
    """Code of a repository is never run: transformers' own class must do."""
    model_type = config.get("model_type")
    is_unknown = isinstance(model_type, str) and is_listed() and class_of(model_type) is None
    lacks = f"transformers has no class for a language model of model_type {model_type!r}"
    if "auto_map" in config and (is_unknown or not isinstance(model_type, str)):
        raise CheckpointError(
            f"model path {path}: config.json asks for remote code (auto_map), never run here; {lacks}"
        )
    if is_unknown and has_weights:
        raise CheckpointError(f"model path {path}: {lacks}, so it can be neither quantized nor evaluated")
    settings = path / "tokenizer_config.json"
    needed = read_description(settings).get("auto_map") if settings.is_file() else None
    if isinstance(needed, dict) and needed.get("AutoTokenizer") and not (path / "tokenizer.json").is_file():
        raise CheckpointError(
            f"model path {path}: tokenizer_config.json asks for remote code (auto_map), which is never run; add its "
            "tokenizer.json"
        )


def _check_tokenizer(path: Path) -> None:
    if not any(_is_one_of(file.name, _TOKENIZERS) for file in path.iterdir()):
        raise CheckpointError(
            f"model path {path} holds no tokenizer: add tokenizer.json (or what it is made from: tokenizer.model, "
            "vocab.json with merges.txt, tekken.json) and tokenizer_config.json"
        )


def _check_not_quantized(path: Path, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> None:
    method = _quantization_method(path, config, infos)
    if method is not None:
        raise CheckpointError(
            f"model path {path} is quantized already ({method}): a source needs weights of 16 or 32 bits; take the "
            "model that it was made from, and this as a published checkpoint of it"
        )


def _quantization_method(path: Path, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> str | None:
    """How the weights were quantized, by what describes them or by what is stored; None where they were not."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for name in ("quantization_config", "compression_config"):
            if isinstance(said := part.get(name), dict) and said:
                return str(said.get("quant_method") or said.get("quant_type") or _of_bits(said))
    beside = next((method for name, method in _QUANTIZERS.items() if (path / name).is_file()), None)
    if beside is not None:
        return beside
    stored = next((name for name in infos if _QUANTIZED.search(name)), None)
    strange = next(
        (name for name, info in infos.items() if name.endswith(".weight") and info.dtype not in _FLOATS), None
    )
    if stored is not None:
        return f"it stores {stored}"
    return None if strange is None else f"{strange} is stored as {infos[strange].dtype}"


def _of_bits(said: Mapping[str, Any]) -> str:
    is_bits_and_bytes = any(str(name).startswith(("load_in_", "_load_in_", "bnb_")) for name in said)
    return "bitsandbytes" if is_bits_and_bytes else "by a method that quantization_config does not name"


def _check_names(path: Path, model: ModelDescription) -> None:
    for prefix, owner in _WRAPPERS.items():
        if model.infos and all(name.startswith(prefix) for name in model.infos):
            raise CheckpointError(
                f"model path {path}: the names of all tensors start with {prefix!r}, which is {owner} and save the "
                "model again"
            )
    unmerged = next((name for name in model.infos if ".lora_A." in name or ".base_layer." in name), None)
    if unmerged is not None:
        raise CheckpointError(
            f"model path {path} holds {unmerged}, so an adapter was not merged; merge it (merge_and_unload) and save "
            "the model again"
        )


def _check_tables(path: Path, model: ModelDescription) -> None:
    """An untied model has two tables; a tied one may store its table twice, but not two tables."""
    tables = [model.infos[name] for name in model.tables]
    has_head = len(tables) != 1 or any(re.search(r"(^|\.)(lm_)?heads?\.\d", name) for name in model.infos)
    if model.ties_head is False and not has_head:
        missing = "lm_head.weight" if re.search("emb|wte", model.tables[0]) else "the table of embeddings"
        raise CheckpointError(
            f"model path {path}: {missing} is missing and the model does not tie it to {model.tables[0]} "
            "(tie_word_embeddings is false); fetch or save the whole model again"
        )
    stores_head = any(re.search("head|output|embed_out", name) for name in model.tables)
    if model.ties_head and stores_head and len(tables) == 2 and not _are_equal(*tables):
        raise CheckpointError(
            f"model path {path}: config.json ties the output head to the embeddings, but {' and '.join(model.tables)} "
            "differ and a loader would drop one; set tie_word_embeddings to false, or take out the wrong one"
        )


def _are_equal(one: TensorInfo, other: TensorInfo) -> bool:
    alike = (one.dtype, one.shape, one.num_bytes) == (other.dtype, other.shape, other.num_bytes)
    return alike and digest_of(one) == digest_of(other)


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
