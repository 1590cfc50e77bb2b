"""Bounds from bytes and operations, and a device's ceilings measured here."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.checkpoints.shape import ModelShape
from stages.dummy import DummyConfig, dummy
from stages.published import PublishedSource, fetch_published
from stages.quantize import Algorithm, RecipeConfig
from stages.serving.ceilings import ceilings
from stages.serving.config import CeilingsConfig
from stages.serving.roofline import least_latency_s, most_requests_per_s, work_of
from tests.stages.checkpoints.written import AWQ, FP8, MODELOPT, write_model, write_quantized

H100 = {"bandwidth_gb_s": 3000.0, "bf16_tflop_s": 800.0, "fp8_tflop_s": 1600.0, "int8_tflop_s": 1600.0}
SHAPE = {
    "num_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
RECIPES = {
    "bf16": RecipeConfig(name="bf16"),
    "w4a16_int": RecipeConfig(name="w4a16_int", algorithm=Algorithm.gptq, scheme="W4A16", group_size=128),
    "w8a8_fp": RecipeConfig(name="w8a8_fp", algorithm=Algorithm.rtn, scheme="FP8_DYNAMIC"),
    "w8a8_int": RecipeConfig(name="w8a8_int", algorithm=Algorithm.gptq, scheme="W8A8"),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}
    for name, recipe in RECIPES.items():
        made[name] = tmp_path_factory.mktemp(name)
        dummy(DummyConfig(shape=SHAPE, recipe=recipe), {}, made[name])
    return made


@pytest.mark.parametrize(
    ("recipe", "arithmetic", "gib"),
    [("bf16", "bf16", 14.96), ("w4a16_int", "bf16", 5.3), ("w8a8_fp", "fp8", 8.5), ("w8a8_int", "int8", 8.5)],
)
def test_what_a_format_moves_and_multiplies_is_read_from_its_config(checkpoints, recipe, arithmetic, gib):
    work = work_of(checkpoints[recipe], 256, 128)
    assert work.arithmetic == arithmetic
    assert work.weight_gib == pytest.approx(gib, rel=0.02)
    assert work.token_kib == 128
    assert work.token_gflop == pytest.approx(2 * (8.03 - 0.525), rel=0.01)


def test_a_single_stream_is_bound_by_bytes(checkpoints):
    """8B in BF16 on an H100: 14 GiB a token at 3 TB/s are 5 ms; four bits a third of it."""
    bf16, int4 = (least_latency_s(work_of(checkpoints[name], 256, 1024), H100) for name in ("bf16", "w4a16_int"))
    assert bf16 == pytest.approx(1024 * 5.05e-3, rel=0.05)
    assert int4 < 0.4 * bf16


def test_with_many_in_flight_eight_bit_arithmetic_is_ahead(checkpoints):
    bounds = {name: most_requests_per_s(work_of(path, 1024, 128), H100, 256) for name, path in checkpoints.items()}
    assert bounds["w8a8_fp"] == bounds["w8a8_int"] > bounds["w4a16_int"] > bounds["bf16"]


@given(st.integers(1, 512), st.integers(1, 512))
def test_more_in_flight_never_bound_the_rate_lower(checkpoints, one, more):
    work = work_of(checkpoints["bf16"], 256, 128)
    few, many = sorted([one, more])
    assert most_requests_per_s(work, H100, few) <= most_requests_per_s(work, H100, many) * (1 + 1e-9)


def test_without_a_ceiling_there_is_no_bound(checkpoints):
    work = work_of(checkpoints["w8a8_int"], 256, 128)
    assert least_latency_s(work, H100 | {"int8_tflop_s": None}) is None
    assert most_requests_per_s(work, {}, 8) is None


@pytest.mark.dear
def test_a_processor_s_ceilings_are_measured(tmp_path):
    found = ceilings(CeilingsConfig(device="this", on_gpu=False), {}, tmp_path)
    assert 0.1 < found["bandwidth_gb_s"] < 2000
    assert 1e-4 < found["fp32_tflop_s"] < 100
    assert json.loads((tmp_path / "ceilings.json").read_text())["fp32_tflop_s"] == found["fp32_tflop_s"]


def test_a_dummy_checkpoint_has_a_tokenizer_that_counts_bytes(checkpoints):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bf16"])
    assert len(tokenizer) == SHAPE["vocab_size"]
    assert len(tokenizer.encode("nine boats")) == len("nine boats")
    assert tokenizer.decode([SHAPE["vocab_size"] - 1]).strip().isdigit()


@pytest.mark.parametrize(
    ("recipe", "fields"),
    [
        ("w8a8_fp", {"algorithm": Algorithm.rtn, "scheme": "FP8_DYNAMIC"}),
        ("w4a16_int", {"algorithm": Algorithm.gptq, "scheme": "W4A16", "group_size": 32, "observer": "mse"}),
    ],
)
def test_a_dummy_checkpoint_is_described_as_a_real_one(quantize_tiny, tiny_model, tmp_path, recipe, fields):
    real = json.loads((quantize_tiny(**fields) / "config.json").read_text())["quantization_config"]
    shape = asdict(ModelShape.from_config(tiny_model / "config.json")) | {"vocab_size": 512}
    dummy(DummyConfig(shape=shape, recipe=RecipeConfig(name=recipe, **fields)), {}, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert described == {name: real[name] for name in described}
    assert real.keys() - described.keys() <= {"version", "sparsity_config", "transform_config"}


def test_a_dummy_checkpoint_names_its_format_as_llm_compressor_does(checkpoints):
    formats = {
        name: json.loads((path / "config.json").read_text()).get("quantization_config", {}).get("format")
        for name, path in checkpoints.items()
    }
    assert formats == {
        "bf16": None,
        "w4a16_int": "pack-quantized",
        "w8a8_fp": "float-quantized",
        "w8a8_int": "int-quantized",
    }


@pytest.mark.parametrize(
    ("quantization", "arithmetic", "cache_bits"), [(AWQ, "bf16", 16), (FP8, "fp8", 16), (MODELOPT, "fp4", 8)]
)
def test_of_a_published_checkpoint_its_own_bytes_and_cache_are_what_is_moved(
    tmp_path, quantization, arithmetic, cache_bits
):
    base, checkpoint = write_model(tmp_path / "base"), tmp_path / "out"
    checkpoint.mkdir()
    source = PublishedSource(path=str(write_quantized(tmp_path / "published", quantization)))
    metrics = fetch_published(source, {"model": base}, checkpoint)
    work = work_of(checkpoint, 256, 128)
    assert work.arithmetic == arithmetic
    assert work.weight_gib == metrics["size_gib"]
    assert work.token_kib == 2 * 2 * 2 * 16 * cache_bits / 8 / 1024
