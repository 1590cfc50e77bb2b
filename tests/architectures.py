"""Tiny random models of many architectures, and which of their layers a recipe for all linear layers quantizes."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SIZE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
_LLAMA = {**_SIZE, "intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 512}
_GEMMA = {**_LLAMA, "tie_word_embeddings": True, "head_dim": 32, "query_pre_attn_scalar": 32}
_ROUTED = {**_LLAMA, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LATENT = {
    **_ROUTED,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_TILED = _VISION | {"image_size": 56, "patch_size": 14}
_QWEN_VISION = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "patch_size": 14, "mlp_ratio": 2}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's class and config; ``num_linears`` of its layers are quantized, an expert's three matrices each one."""

    kind: str
    config: Mapping[str, Any]
    num_linears: int
    text: str | None = None  # the class of its text part's config, whose fields ``config`` are then
    vision: Mapping[str, Any] | None = None
    head: str = "ForCausalLM"


_ATTENTION, _GATED = 4, 3
_DENSE = 2 * (_ATTENTION + _GATED)
_FUSED = 2 * (2 + 2)
_EXPERTS = 2 * (_ATTENTION + 4 * _GATED)
SIX = ("llama", "qwen3", "gemma2", "phi3", "qwen3_moe", "gpt_oss")
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("Llama", _LLAMA, _DENSE),
    "llama_tied": Architecture("Llama", _LLAMA | {"tie_word_embeddings": True}, _DENSE),
    "mistral": Architecture("Mistral", _LLAMA | {"head_dim": 32, "sliding_window": 64}, _DENSE),
    "qwen2": Architecture("Qwen2", _LLAMA | {"tie_word_embeddings": True}, _DENSE),
    "qwen3": Architecture("Qwen3", _LLAMA | {"head_dim": 32}, _DENSE),
    "gemma2": Architecture("Gemma2", _GEMMA, _DENSE),
    "gemma3_text": Architecture("Gemma3", _GEMMA, _DENSE, text="only"),
    "gemma3": Architecture(
        "Gemma3",
        {**_GEMMA, "sliding_window": 64},
        _DENSE,
        text="text_config",
        vision=_TILED,
        head="ForConditionalGeneration",
    ),
    "phi3": Architecture("Phi3", _LLAMA, _FUSED),
    "phi": Architecture("Phi", _LLAMA | {"num_key_value_heads": 4}, 2 * (_ATTENTION + 2)),
    "cohere": Architecture("Cohere", _LLAMA, _DENSE),
    "cohere2": Architecture("Cohere2", _LLAMA | {"head_dim": 32, "sliding_window": 64}, _DENSE),
    "olmo2": Architecture("Olmo2", _LLAMA, _DENSE),
    "glm4": Architecture("Glm4", _LLAMA | {"head_dim": 32}, 2 * (_ATTENTION + 2)),
    "gpt_neox": Architecture("GPTNeoX", {**_SIZE, "intermediate_size": 128, "max_position_embeddings": 512}, _FUSED),
    "falcon": Architecture("Falcon", _SIZE, _FUSED),
    "starcoder2": Architecture("Starcoder2", _LLAMA, 2 * (_ATTENTION + 2)),
    "stablelm": Architecture("StableLm", _LLAMA, _DENSE),
    "granite": Architecture("Granite", _LLAMA, _DENSE),
    "smollm3": Architecture("SmolLM3", _LLAMA, _DENSE),
    "exaone4": Architecture("Exaone4", _LLAMA | {"sliding_window": 64}, _DENSE),
    "ernie4_5": Architecture("Ernie4_5", _LLAMA | {"head_dim": 32}, _DENSE),
    "nemotron": Architecture("Nemotron", _LLAMA, 2 * (_ATTENTION + 2)),
    "opt": Architecture(
        "OPT",
        {**_SIZE, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 512},
        2 * (_ATTENTION + 2),
    ),
    "bloom": Architecture("Bloom", {"n_layer": 2, "n_head": 4, "hidden_size": 64}, _FUSED),
    "mixtral": Architecture("Mixtral", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}, _EXPERTS),
    "qwen2_moe": Architecture(
        "Qwen2Moe", _ROUTED | {"num_experts": 4, "shared_expert_intermediate_size": 64}, _EXPERTS + 2 * _GATED
    ),
    "qwen3_moe": Architecture("Qwen3Moe", _ROUTED | {"num_experts": 4, "head_dim": 32}, _EXPERTS),
    "gpt_oss": Architecture(
        "GptOss",
        _LLAMA | {"intermediate_size": 64, "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
        _EXPERTS,
    ),
    "olmoe": Architecture("Olmoe", _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}, _EXPERTS),
    "deepseek_v3": Architecture("DeepseekV3", _LATENT, 2 * 5 + _GATED + 4 * _GATED + _GATED),
    "qwen2_vl": Architecture(
        "Qwen2VL",
        _LLAMA | {"rope_parameters": _SECTIONS},
        _DENSE,
        text="text_config",
        vision=_QWEN_VISION,
        head="ForConditionalGeneration",
    ),
}


def make(name: str, tokenizer_dir: Path, out: Path) -> Path:
    """A model in BF16 beside the files of the tokenizer in ``tokenizer_dir``."""
    import torch
    import transformers

    for file in tokenizer_dir.iterdir():
        if re.search("token|template", file.name):
            shutil.copy(file, out / file.name)
    torch.manual_seed(7)
    model_class = getattr(transformers, ARCHITECTURES[name].kind + ARCHITECTURES[name].head)
    model_class(_config(ARCHITECTURES[name], tokenizer_dir)).to(torch.bfloat16).save_pretrained(out)
    return out


def _config(architecture: Architecture, tokenizer_dir: Path) -> Any:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    own = {"vocab_size": len(tokenizer), "tie_word_embeddings": False, **architecture.config}
    own |= {end: getattr(tokenizer, end) for end in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if architecture.text == "only":
        return getattr(transformers, f"{architecture.kind}TextConfig")(**own)
    kind = getattr(transformers, f"{architecture.kind}Config")
    if architecture.text is None:
        return kind(**own)
    return kind(text_config=own, vision_config=dict(architecture.vision or {}))


def set_config(model: Path, **values: Any) -> None:
    """Change keys of a model's ``config.json``."""
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
