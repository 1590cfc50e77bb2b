"""What is no model to quantize and evaluate is refused at the door, in one line that says what it is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.checkpoints.checks import check_model_path
from stages.checkpoints.files import INDEX, WHOLE, is_small_file, model_files
from stages.errors import StageError
from tests.stages.checkpoints.written import LLAMA, TENSORS, write_model, write_tensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def refusal(model: Path) -> str:
    with pytest.raises(StageError) as refused:
        check_model_path(model)
    assert "\n" not in str(refused.value) and str(model) in str(refused.value)
    return str(refused.value)


def set_config(model: Path, **values: object) -> None:
    (model / "config.json").write_text(json.dumps(LLAMA | values))


def without(*names: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in TENSORS.items() if name not in names}


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "fp8"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"text_config": {**LLAMA, "quantization_config": {"quant_method": "awq"}}}, "awq"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
    ],
)
def test_a_quantized_source_is_named_by_its_method(model: Path, values: dict[str, object], method: str) -> None:
    set_config(model, **values)
    assert f"is quantized already ({method}): a source needs weights of 16 or 32 bits" in refusal(model)


def test_nothing_said_of_a_quantization_is_none(model: Path) -> None:
    set_config(model, quantization_config=None)
    check_model_path(model)


@pytest.mark.parametrize(
    ("tensors", "dtype", "reason"),
    [
        ({"model.layers.0.mlp.up_proj.qweight": (8, 8)}, "I32", "it stores model.layers.0.mlp.up_proj.qweight"),
        ({"model.layers.0.mlp.up_proj.weight_scale_inv": (1, 1)}, "F32", "up_proj.weight_scale_inv"),
        ({"model.layers.0.mlp.up_proj.weight": (8, 8)}, "F8_E4M3", "up_proj.weight is stored as F8_E4M3"),
    ],
)
def test_a_quantized_source_that_does_not_say_so_is_known_by_its_tensors(
    model: Path, tensors: dict[str, tuple[int, ...]], dtype: str, reason: str
) -> None:
    write_tensors(model / WHOLE, tensors, dtype)
    assert reason in refusal(model)


def test_what_another_quantizer_wrote_beside_the_config_counts(model: Path) -> None:
    (model / "quantize_config.json").write_text("{}")
    assert "quantized already (gptq)" in refusal(model)


@pytest.mark.parametrize("has_config", [False, True])
def test_an_adapter_is_named_with_its_base(model: Path, has_config: bool) -> None:
    (model / WHOLE).rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    if not has_config:
        (model / "config.json").unlink()
    assert "is an adapter for org/base and no model; merge it into its base" in refusal(model)


@pytest.mark.parametrize("prefix", ["base_model.model.", "module.", "_orig_mod."])
def test_names_under_a_wrapper_are_refused(model: Path, prefix: str) -> None:
    write_tensors(model / WHOLE, {f"{prefix}{name}": shape for name, shape in TENSORS.items()})
    assert f"names of all tensors start with '{prefix}'" in refusal(model)


def test_an_adapter_among_the_weights_was_not_merged(model: Path) -> None:
    write_tensors(model / WHOLE, TENSORS | {"model.layers.0.self_attn.q_proj.lora_A.weight": (4, 64)})
    assert "an adapter was not merged" in refusal(model)


def test_a_head_that_is_neither_stored_nor_tied_is_missing(model: Path) -> None:
    write_tensors(model / WHOLE, without("lm_head.weight"))
    assert "lm_head.weight is missing and the model does not tie it" in refusal(model)
    set_config(model, tie_word_embeddings=True)
    assert check_model_path(model).ties_head


def test_embeddings_that_are_not_stored_are_missing(model: Path) -> None:
    write_tensors(model / WHOLE, without("model.embed_tokens.weight"))
    assert "the table of embeddings is missing" in refusal(model)


def test_a_tied_head_may_be_stored_as_the_table_s_copy_alone(model: Path) -> None:
    set_config(model, tie_word_embeddings=True)
    sizes = check_model_path(model).sizes
    write_tensors(model / WHOLE, without("lm_head.weight"))
    assert check_model_path(model).sizes == sizes  # it is counted once
    head, table = TENSORS["lm_head.weight"], TENSORS["model.embed_tokens.weight"]
    write_tensors(model / WHOLE, {"model.embed_tokens.weight": table, "lm_head.weight": head})
    raw = (model / WHOLE).read_bytes()
    (model / WHOLE).write_bytes(raw[:-1] + b"\1")
    assert "ties the output head to the embeddings, but" in refusal(model)


def test_a_model_without_a_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text("{}")
    assert "holds no tokenizer: add tokenizer.json" in refusal(model)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "tekken.json", "qwen.tiktoken", "vocab.json"])
def test_tokenizers_of_every_kind_will_do(model: Path, name: str) -> None:
    (model / "tokenizer.json").rename(model / name)
    check_model_path(model)


def test_code_that_transformers_can_do_without_is_no_reason(model: Path) -> None:
    set_config(model, auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    (model / "modeling_own.py").write_text("raise SystemExit")
    check_model_path(model)
    assert not [file for file in model_files(model) if file.suffix == ".py"]


@pytest.mark.parametrize("auto_map", [None, {"AutoModelForCausalLM": "modeling_x.X"}])
def test_a_type_of_which_transformers_has_no_class_is_refused(model: Path, auto_map: object) -> None:
    set_config(model, model_type="x_custom", **({"auto_map": auto_map} if auto_map else {}))
    said = refusal(model)
    assert "transformers has no class for a language model of model_type 'x_custom'" in said
    assert ("remote code" in said) is bool(auto_map)


def test_a_tokenizer_that_is_code_alone_is_refused(model: Path) -> None:
    (model / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}}')
    check_model_path(model)
    (model / "tokenizer.json").rename(model / "x.tiktoken")
    assert "tokenizer_config.json asks for remote code" in refusal(model)


def test_a_config_that_is_no_json_is_named_with_the_place(model: Path) -> None:
    (model / "config.json").write_text('{\n "hidden_size": not json')
    assert "config.json cannot be read, it is no JSON (line 2, column 17:" in refusal(model)


def shards(model: Path) -> None:
    """The same model in two files and an index."""
    (model / WHOLE).unlink()
    names, weight_map = sorted(TENSORS), {}
    for number, part in ((1, names[:5]), (2, names[5:])):
        file = f"model-0000{number}-of-00002.safetensors"
        write_tensors(model / file, {name: TENSORS[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def lack_a_shard(model: Path) -> None:
    shards(model)
    (model / "model-00002-of-00002.safetensors").unlink()


def add_the_whole(model: Path) -> None:
    shards(model)
    write_tensors(model / WHOLE, TENSORS)


def lack_the_index(model: Path) -> None:
    shards(model)
    (model / INDEX).unlink()


def point_elsewhere(model: Path) -> None:
    (model / INDEX).write_text('{"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lack_a_shard, rf"model-00002-of-00002.safetensors, which {INDEX} names, is missing"),
        (add_the_whole, f"holds {WHOLE}, and {INDEX}, which names model-00001-of-00002.safetensors"),
        (lack_the_index, f"model-00001-of-00002.safetensors and 1 more, but neither {WHOLE} nor {INDEX}"),
        (point_elsewhere, "names ../elsewhere.safetensors, which does not lie beside it"),
    ],
)
def test_weights_that_loaders_cannot_find_are_named(model: Path, change: Callable[[Path], None], message: str) -> None:
    change(model)
    assert message in refusal(model)


def test_second_copies_of_the_weights_are_no_part_of_the_model(model: Path) -> None:
    alone = check_model_path(model).sizes
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"):
        write_tensors(model / name, TENSORS)
    (model / "original").mkdir()
    write_tensors(model / "original" / WHOLE, TENSORS)
    (model / "adapter_config.json").write_text("{}")
    assert check_model_path(model).sizes == alone
    assert {file.name for file in model_files(model)} == {"config.json", "tokenizer.json", WHOLE}


def test_sharded_weights_are_the_files_that_the_index_names(model: Path) -> None:
    alone = check_model_path(model).sizes
    shards(model)
    write_tensors(model / "consolidated.safetensors", TENSORS)
    assert check_model_path(model).sizes == alone
    assert "consolidated.safetensors" not in {file.name for file in model_files(model)}


@pytest.mark.parametrize(
    "place",
    ["processor_config.json", "preprocessor_config.json", "tekken.json", "tiktoken.model", "spiece.model", "vocab.txt",
     "tokenizer.model.v3", "qwen.tiktoken", "chat_template.jinja", "additional_chat_templates/rag.jinja"],
)  # fmt: skip
def test_small_files_that_loaders_read_come_along(place: str) -> None:
    assert is_small_file(place)


@pytest.mark.parametrize(
    "place",
    ["modeling_x.py", "tokenizer.py", "model.safetensors", "consolidated.safetensors", "original/params.json",
     "original/tokenizer.model", "pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_config.json",
     "training_args.bin", "onnx/config.json", "params.json", "manifest.json"],
)  # fmt: skip
def test_code_weights_and_second_models_do_not(place: str) -> None:
    assert not is_small_file(place)
