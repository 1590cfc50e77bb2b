"""Tiny checkpoints of every format, made with llm-compressor, and ways to damage them."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
NUM_TOKENS, VOCABULARY = 64, 384
# compressed-tensors' presets: those that recipes make, and those that published checkpoints have.
SCHEMES = [
    "FP8_DYNAMIC",
    "FP8",
    "FP8_BLOCK",
    "W8A8",
    "W8A16",
    "W4A16",
    "W4A16_ASYM",
    "NVFP4",
    "NVFP4A16",
    "MXFP4",
    "MXFP8",
]
_CALIBRATED = ("FP8", "NVFP4")


def save_llama(path: Path, tokenizer_dir: Path, **fields: Any) -> Path:
    """A random BF16 Llama of two layers, as many keys as queries, whose layers every format's groups divide."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    }
    LlamaForCausalLM(LlamaConfig(**sizes | fields)).to(torch.bfloat16).save_pretrained(path)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(path)
    return path


def compress(
    model_dir: Path, out: Path, scheme: str, *rotations: Any, ignore: Sequence[str] = ("lm_head",), **more: Any
) -> Path:
    """Round a model to nearest and save it compressed, after the modifiers that rotate it."""
    from llmcompressor import oneshot
    from llmcompressor.core import reset_session
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    recipe = [*rotations, QuantizationModifier(targets=["Linear"], scheme=scheme, ignore=list(ignore), **more)]
    oneshot(model=model, recipe=recipe, dataset=_tokens() if scheme in _CALIBRATED or more else None)
    model.save_pretrained(out, save_compressed=True)
    reset_session()
    return out


def rotated(model_dir: Path, out: Path) -> Path:
    """4-bit weights of a model whose values are rotated while it computes."""
    from llmcompressor.modifiers.transform import QuIPModifier

    return compress(
        model_dir, out, "W4A16", QuIPModifier(rotations=["v"], transform_type="random-hadamard", ignore="lm_head")
    )


def with_fp8_cache(model_dir: Path, out: Path) -> Path:
    """With scales of keys and values beside those of the layers."""
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    return compress(model_dir, out, "W4A16", kv_cache_scheme=cache)


def of_two_formats(model_dir: Path, out: Path) -> Path:
    """Attention in 8 bits, the rest in 4."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.core import reset_session
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    groups = {
        "group_0": preset_name_to_scheme("FP8_DYNAMIC", ["re:.*self_attn.*"]),
        "group_1": preset_name_to_scheme("W4A16", ["re:.*mlp.*"]),
    }
    oneshot(model=model, recipe=QuantizationModifier(config_groups=groups, ignore=["lm_head"]))
    model.save_pretrained(out, save_compressed=True)
    reset_session()
    return out


def spun(model_dir: Path, out: Path) -> Path:
    """4-bit weights of a model that is rotated through and through, embeddings and head as well."""
    from llmcompressor.modifiers.transform import SpinQuantModifier

    return compress(model_dir, out, "W4A16", SpinQuantModifier(rotations=["R1", "R2", "R4"], transform_type="hadamard"))


def _tokens() -> Any:
    from torch.utils.data import DataLoader

    ids = torch.randint(0, VOCABULARY, (4, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    samples: Any = [{"input_ids": row[None], "attention_mask": torch.ones(1, NUM_TOKENS)} for row in ids]
    return DataLoader(samples, batch_size=None)


def damage(checkpoint: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy some of whose tensors are changed, taken out or added."""
    shutil.copytree(checkpoint, out)
    tensors = load_file(out / WEIGHTS)
    change(tensors)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    return out


def redescribe(checkpoint: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of another ``quantization_config``, as published ones are: without recipe.yaml."""
    shutil.copytree(checkpoint, out)
    (out / "recipe.yaml").unlink()
    config = json.loads((out / "config.json").read_text())
    change(config["quantization_config"])
    (out / "config.json").write_text(json.dumps(config))
    return out


def swap(one: str, other: str) -> Callable[[dict[str, Any]], None]:
    """Give all that is stored of one layer to another, and the other way round."""

    def change(tensors: dict[str, Any]) -> None:
        moved = {}
        for name in list(tensors):
            for here, there in ((one, other), (other, one)):
                if name.startswith(f"{here}."):
                    moved[f"{there}{name.removeprefix(here)}"] = tensors[name]
        tensors |= moved

    return change


def not_a_number(name: str) -> Callable[[dict[str, Any]], None]:
    """Make one of a tensor's values NaN, whatever its dtype."""

    def change(tensors: dict[str, Any]) -> None:
        values = tensors[name]
        if values.dtype == torch.uint8:
            values.view(-1)[0] = 255
        elif values.dtype == torch.float8_e4m3fn:
            values.view(torch.uint8).view(-1)[0] = 0x7F
        else:
            values.view(-1)[0] = torch.nan

    return change


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    """Take a tensor out."""

    def change(tensors: dict[str, Any]) -> None:
        del tensors[name]

    return change
