"""Turn a GGUF file of a Llama model into a plain Hugging Face checkpoint: BF16 safetensors and a fast tokenizer.

transformers 5.17 can read GGUF too, but gives SmolLM2 ``<|im_start|>`` as its end token, leaves control tokens
unmarked, drops the pre-tokenizer (runs of spaces before digits are cut unlike in training) and takes 27 s where
this takes 5.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader, ReaderTensor
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from torch import Tensor
    from transformers import LlamaConfig

_CONTROL = 3  # gguf.TokenType.CONTROL
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(file: Path, out: Path) -> None:
    """Write config, generation config, BF16 safetensors and tokenizer into ``out``; DataError for what is not known."""
    from gguf import GGUFReader

    reader = GGUFReader(str(file))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise DataError(
            f"{file.name}: GGUF architecture {fields['general.architecture']!r} is not supported, only llama"
        )
    _save_tokenizer(fields, out)
    _save_weights(reader, fields, out)


def _save_weights(reader: "GGUFReader", fields: dict[str, Any], out: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = _llama_config(fields, tied)
    weights = dict(_convert_tensor(tensor, fields) for tensor in reader.tensors)
    if tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model_class: Any = LlamaForCausalLM  # untyped in transformers
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.save_pretrained(out)


def _llama_config(fields: dict[str, Any], tied: bool) -> "LlamaConfig":
    import numpy as np
    from transformers import LlamaConfig

    token_ids: dict[str, Any] = {
        f"{role}_token_id": fields.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()
    }
    epsilon = np.float32(fields["llama.attention.layer_norm_rms_epsilon"])
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=_num_key_value_heads(fields),
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=float(str(epsilon)),  # 1e-05 again, not 9.999999747378752e-06
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=tied,
        **token_ids,
    )


def _num_key_value_heads(fields: dict[str, Any]) -> int:
    return int(fields.get("llama.attention.head_count_kv", fields["llama.attention.head_count"]))


def _convert_tensor(tensor: "ReaderTensor", fields: dict[str, Any]) -> "tuple[str, Tensor]":
    import torch
    from gguf import dequantize

    weight = dequantize(tensor.data, tensor.tensor_type)
    name = _hf_name(tensor.name)
    if name.endswith("q_proj.weight"):
        weight = _unpermute(weight, fields["llama.attention.head_count"])
    elif name.endswith("k_proj.weight"):
        weight = _unpermute(weight, _num_key_value_heads(fields))
    return name, torch.tensor(weight).to(torch.bfloat16)


def _hf_name(name: str) -> str:
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    head, _, rest = name.removeprefix("blk.").partition(".")
    layer = rest.removesuffix(".weight")
    if layer not in _BLOCK_NAMES:
        raise DataError(f"GGUF tensor {name} has no place in a plain Llama model; use the model's safetensors instead")
    return f"model.layers.{head}.{_BLOCK_NAMES[layer]}.weight"


def _unpermute(weight: "np.ndarray[Any, Any]", num_heads: int) -> "np.ndarray[Any, Any]":
    """GGUF interleaves the two halves of each head's rotary dimensions; Hugging Face keeps them apart."""
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _save_tokenizer(fields: dict[str, Any], out: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    ids = {role: fields.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
    tokenizer_class: Any = PreTrainedTokenizerFast  # untyped in transformers
    tokenizer_class(
        tokenizer_object=_build_tokenizer(fields),
        chat_template=fields.get("tokenizer.chat_template"),
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": tokens[index] for role, index in ids.items() if index is not None},
    ).save_pretrained(out)


def _build_tokenizer(fields: dict[str, Any]) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE

    kind = fields["tokenizer.ggml.model"]
    if kind != "gpt2":
        raise DataError(f"GGUF tokenizer model {kind!r} is not supported; use the model's safetensors instead")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(fields.get("tokenizer.ggml.pre"))
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _pre_tokenizer(name: str | None) -> "PreTokenizer":
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if name != "smollm":
        raise DataError(f"GGUF pre-tokenizer {name!r} is not supported; use the model's safetensors instead")
    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
