"""Models that are nothing but a config and headers: enough for whatever is read without torch."""

import json
from collections.abc import Mapping
from pathlib import Path

NUM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4, "U8": 1}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
BLOCK = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
    "input_layernorm": (64,),
    "post_attention_layernorm": (64,),
}
TENSORS = {
    "model.embed_tokens.weight": (384, 64),
    "lm_head.weight": (384, 64),
    "model.norm.weight": (64,),
    **{f"model.layers.{index}.{name}.weight": shape for index in range(2) for name, shape in BLOCK.items()},
}


def write_tensors(file: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str = "BF16", fill: bytes = b"\0") -> None:
    """A safetensors file of tensors that are all alike."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + NUM_BYTES[dtype] * _product(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + fill * end)


def write_model(
    path: Path,
    config: Mapping[str, object] = LLAMA,
    tensors: Mapping[str, tuple[int, ...]] = TENSORS,
    dtype: str = "BF16",
) -> Path:
    """A model's directory, with a tokenizer in name."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    write_tensors(path / "model.safetensors", tensors, dtype)
    return path


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found
