"""Checkpoints in the forms that others publish, made here of a small model."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

E4M3_MAX = 448.0


def save_moe(tokenizer_dir: Path, out: Path) -> Path:
    """A random mixture of experts with the tokenizer of another model."""
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
    copy_companions(tokenizer_dir, out)
    return out


def save_fp8_blocks(model_dir: Path, out: Path, block: int = 32, kept: Iterable[str] = ("lm_head",)) -> Path:
    """As DeepSeek and Qwen publish FP8: codes in E4M3, and a float32 scale for each block, by which they are
    multiplied.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in read_weights(model_dir).items():
        if not is_linear(name, weight) or any(name.startswith(each) for each in kept):
            tensors[name] = weight
            continue
        codes, scales = _fp8_blocks(weight.float(), block)
        tensors |= {name: codes, f"{name}_scale_inv": scales}
    quantization = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
        "modules_to_not_convert": list(kept),
    }
    return save(model_dir, out, tensors, quantization)


def save_awq(model_dir: Path, out: Path, group_size: int = 32) -> Path:
    """As AutoAWQ does (GEMM): eight codes of 4 bits a word along the outputs, in its order, with zero points."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in read_weights(model_dir).items():
        if not is_linear(name, weight) or name.startswith("lm_head"):
            tensors[name] = weight
            continue
        codes, scales, zeros = _groups(weight.float(), group_size)
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.qweight"] = _awq_words(codes.T)
        tensors[f"{layer}.qzeros"] = _awq_words(zeros.T)
        tensors[f"{layer}.scales"] = scales.T.contiguous().half()
    quantization = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    return save(model_dir, out, tensors, quantization)


def save_gptq(model_dir: Path, out: Path, group_size: int = 32) -> Path:
    """As AutoGPTQ does: eight codes of 4 bits a word along the inputs."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in read_weights(model_dir).items():
        if not is_linear(name, weight) or name.startswith("lm_head"):
            tensors[name] = weight
            continue
        codes, scales, zeros = _groups(weight.float(), group_size)
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.qweight"] = _words(codes).T.contiguous()
        tensors[f"{layer}.qzeros"] = _words(zeros.T - 1)
        tensors[f"{layer}.scales"] = scales.T.contiguous().half()
        tensors[f"{layer}.g_idx"] = torch.arange(weight.shape[1], dtype=torch.int32) // group_size
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": group_size, "sym": False, "desc_act": False}
    return save(model_dir, out, tensors, quantization)


def dequantized_awq(model_dir: Path, group_size: int = 32) -> dict[str, torch.Tensor]:
    """What the weights of ``save_awq`` stand for, by its own arithmetic."""
    found = {}
    for name, weight in read_weights(model_dir).items():
        if is_linear(name, weight) and not name.startswith("lm_head"):
            codes, scales, zeros = _groups(weight.float(), group_size)
            groups = codes.reshape(len(codes), -1, group_size)
            found[name] = ((groups - zeros[..., None]) * scales[..., None]).reshape(codes.shape)
    return found


def save_compressed(model_dir: Path, out: Path, scheme: str, ignore: Iterable[str] = ("lm_head",)) -> Path:
    """As llm-compressor does, rounded to nearest."""
    from llmcompressor import oneshot
    from llmcompressor.core import reset_session
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoTokenizer

    from stages.checkpoints.opening import load_model

    model = load_model(model_dir, splits_experts=True, dtype="auto")
    recipe = [QuantizationModifier(scheme=scheme, targets=["Linear"], ignore=list(ignore))]
    oneshot(model=model, tokenizer=AutoTokenizer.from_pretrained(model_dir), recipe=recipe)
    model.save_pretrained(out, save_compressed=True)
    reset_session()
    copy_companions(model_dir, out)
    return out


def read_weights(model_dir: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in sorted(model_dir.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def is_linear(name: str, weight: torch.Tensor) -> bool:
    return weight.ndim == 2 and not any(part in name for part in ("embed", "norm", "gate.weight"))


def save(model_dir: Path, out: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any] | None) -> Path:
    """A copy of the model with other tensors, described so."""
    out.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors")
    config = json.loads((model_dir / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    copy_companions(model_dir, out)
    return out


def change(
    source: Path, out: Path, tensors: Callable[[dict[str, torch.Tensor]], None] | None = None, **config: Any
) -> Path:
    """A copy of a checkpoint with something changed."""
    shutil.copytree(source, out)
    if config:
        said = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(said | config))
    if tensors is not None:
        weights = read_weights(out)
        tensors(weights)
        save_file(weights, out / "model.safetensors")
    return out


def copy_companions(model_dir: Path, out: Path) -> None:
    for file in model_dir.iterdir():
        if file.suffix != ".safetensors" and "index" not in file.name and not (out / file.name).exists():
            shutil.copy2(file, out / file.name)


def _fp8_blocks(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = weight.shape
    assert rows % block == columns % block == 0
    blocks = weight.reshape(rows // block, block, columns // block, block)
    scales = blocks.abs().amax(dim=(1, 3)) / E4M3_MAX
    codes = (blocks / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
    return codes, scales


def _groups(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (rows, columns), scales and zero points (rows, groups)."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // group_size, group_size)
    low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    codes = ((groups / scales[..., None]).round() + zeros[..., None]).clamp(0, 15)
    return codes.reshape(rows, columns).int(), scales, zeros.int()


def _awq_words(codes: torch.Tensor) -> torch.Tensor:
    return _words(codes, [0, 2, 4, 6, 1, 3, 5, 7])


def _words(codes: torch.Tensor, order: Iterable[int] = range(8)) -> torch.Tensor:
    """Eight codes a word along the columns; ``order``: the code that each nibble of a word holds."""
    rows, columns = codes.shape
    words = torch.zeros(rows, columns // 8, dtype=torch.int64)
    for nibble, place in enumerate(order):
        words |= codes[:, place::8].long() << (4 * nibble)
    return torch.where(words >= 2**31, words - 2**32, words).int()
