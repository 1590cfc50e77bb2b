"""A GGUF file becomes the model it was made from: same weights, same tokens, and it stops talking."""

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.checkpoints.gguf import convert_gguf
from stages.errors import DataError

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NUM_HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}


def write_gguf(model_dir, path, quantization=GGMLQuantizationType.F32, **changes):
    """The tiny model as llama.cpp's converter writes it: renamed, with each head's rotary halves interleaved."""
    writer = GGUFWriter(path, changes.get("architecture", "llama"))
    config = json.loads((model_dir / "config.json").read_text())
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    write_tokenizer(model_dir, writer, changes.get("pre", "smollm"))
    for name, tensor in load_file(model_dir / "model.safetensors").items():
        weight = tensor.float().numpy()
        layer = name.removesuffix(".weight")
        head, _, rest = layer.removeprefix("model.layers.").partition(".")
        if rest in NUM_HEADS:
            halves = weight.reshape(NUM_HEADS[rest], 2, -1, weight.shape[1])
            weight = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
        target = NAMES[layer] if layer in NAMES else f"blk.{head}.{NAMES[rest]}"
        kind = quantization if weight.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(f"{target}.weight", quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer(model_dir, writer, pre):
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template((model_dir / "chat_template.jinja").read_text())


@pytest.fixture
def out(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    return path


def test_weights_return_bit_for_bit(tiny_model, tmp_path, out):
    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", out)
    original, converted = (load_file(path / "model.safetensors") for path in (tiny_model, out))
    assert original.keys() == converted.keys()
    assert all(torch.equal(original[name], converted[name]) for name in original)
    assert converted["lm_head.weight"].dtype == torch.bfloat16


def test_quantized_weights_agree_with_transformers_own_reader(tiny_model, tmp_path, out):
    write_gguf(tiny_model, tmp_path / "tiny.gguf", GGMLQuantizationType.Q4_1)
    convert_gguf(tmp_path / "tiny.gguf", out)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.bfloat16)
    ours = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name)), name


@pytest.mark.parametrize(("change", "message"), [({"architecture": "mamba"}, "mamba"), ({"pre": "other"}, "other")])
def test_unknown_kind_is_refused_rather_than_guessed(tiny_model, tmp_path, out, change, message):
    write_gguf(tiny_model, tmp_path / "tiny.gguf", **change)
    with pytest.raises(DataError, match=f"{message}.*not supported"):
        convert_gguf(tmp_path / "tiny.gguf", out)


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("x  89", ["x", "ĠĠ", "8", "9"]),
        ("1234", ["1", "2", "3", "4"]),
        ("<|im_start|>user\nhi<|im_end|>", ["<|im_start|>", "user", "Ċ", "hi", "<|im_end|>"]),
    ],
)
def test_smollm2_cuts_text_as_in_training(smollm2_tokenizer, text, tokens):
    ids = smollm2_tokenizer(text)["input_ids"]
    assert smollm2_tokenizer.convert_ids_to_tokens(ids) == tokens
    assert smollm2_tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["naïve café 日本語 🙂", "  two\n\n\ttabs: x=1", "don't  stop 3.14"])
def test_smollm2_text_survives_the_round_trip(smollm2_tokenizer, text):
    assert smollm2_tokenizer.decode(smollm2_tokenizer(text)["input_ids"]) == text


def test_smollm2_answers_a_chat_and_stops(smollm2, smollm2_tokenizer):
    # In BF16 the first two tokens tie, and which is chosen depends on the processor's kernels.
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32")
    prompt = smollm2_tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=32, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert smollm2_tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
