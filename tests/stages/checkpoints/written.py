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


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
_FP4_WEIGHTS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
NVFP4A16 = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "config_groups": {"group_0": {"weights": _FP4_WEIGHTS, "input_activations": None, "targets": ["Linear"]}},
    "kv_cache_scheme": None,
}
MODELOPT = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False},
    "ignore": ["lm_head"],
}
Stored = dict[str, tuple[str, tuple[int, ...]]]


def quantized_tensors(method: str, kept: tuple[str, ...] = ("lm_head",)) -> Stored:
    """Names, types and shapes that a form gives the tensors of TENSORS."""
    found: Stored = {}
    for name, shape in TENSORS.items():
        layer = name.removesuffix(".weight")
        if len(shape) == 1 or "embed" in name or layer.endswith(kept):
            found[name] = ("BF16", shape)
        else:
            found |= {f"{layer}.{part}": tensor for part, tensor in _FORMS[method](*shape).items()}
    return found


def _awq(rows: int, columns: int) -> Stored:
    groups, words = columns // 32, rows // 8
    return {
        "qweight": ("I32", (columns, words)),
        "qzeros": ("I32", (groups, words)),
        "scales": ("F16", (groups, rows)),
    }


def _gptq(rows: int, columns: int) -> Stored:
    groups = columns // 32
    return {
        "qweight": ("I32", (columns // 8, rows)),
        "qzeros": ("I32", (groups, rows // 8)),
        "scales": ("F16", (groups, rows)),
        "g_idx": ("I32", (columns,)),
    }


def _fp8(rows: int, columns: int) -> Stored:
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", (rows // 32, columns // 32))}


def _fp4(rows: int, columns: int) -> Stored:
    return {
        "weight_packed": ("U8", (rows, columns // 2)),
        "weight_scale": ("F8_E4M3", (rows, columns // 16)),
        "weight_global_scale": ("F32", (1,)),
    }


def _modelopt(rows: int, columns: int) -> Stored:
    return {
        "weight": ("U8", (rows, columns // 2)),
        "weight_scale": ("F8_E4M3", (rows, columns // 16)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    }


_FORMS = {"awq": _awq, "gptq": _gptq, "fp8": _fp8, "compressed-tensors": _fp4, "modelopt": _modelopt}


def write_quantized(
    path: Path, quantization: Mapping[str, object], tensors: Stored | None = None, **config: object
) -> Path:
    """The model of LLAMA and TENSORS in a form that others publish."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**LLAMA, **config, "quantization_config": quantization}))
    (path / "tokenizer.json").write_text("{}")
    if tensors is None:
        tensors = quantized_tensors(str(quantization["quant_method"]))
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + NUM_BYTES[dtype] * _product(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return path
