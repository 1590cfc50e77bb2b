"""The table of vLLM's kernels: what each format is computed with, where, and what would do where it does not run."""

import re
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
import yaml

from stages.checkpoints.formats import FORMATS
from stages.checkpoints.kernels import (
    Answer,
    Device,
    answer,
    answer_all,
    computed_as,
    emulated,
    rounds_of,
    table,
    varies,
)
from stages.errors import ConfigError
from stages.evaluate.engines.simulated import input_formats

CONF = Path(__file__).parents[3] / "conf"
GPUS = {path.stem: yaml.safe_load(path.read_text()).get("capability") for path in (CONF / "gpu").glob("*.yaml")}
CPU = Device(True, None, "0.32.0")
PACKED = replace(FORMATS["W4AFP8"], packing="pack-quantized")


def on(capability, version="0.26.0"):
    return Device(False, capability, version)


@pytest.mark.parametrize(
    ("name", "capability", "kernel", "effective"),
    [
        ("FP8_DYNAMIC", 8.0, "HummingFP8ScaledMMLinearKernel", "W8A16"),
        ("FP8_DYNAMIC", 8.9, "CutlassFP8ScaledMMLinearKernel", None),
        ("FP8", 10.0, "FlashInferFP8ScaledMMLinearKernel", None),
        ("FP8_BLOCK", 8.6, "HummingFP8ScaledMMLinearKernel", "W8A16"),
        ("FP8_BLOCK", 8.9, "TritonFp8BlockScaledMMKernel", None),
        ("FP8_BLOCK", 9.0, "FlashInferFp8DeepGEMMDynamicBlockScaledKernel", "W8A8, scales 2^n"),
        ("W8A8", 9.0, "CutlassInt8ScaledMMLinearKernel", None),
        ("W8A16", 7.5, "MarlinLinearKernel", None),
        ("W4A16", 9.0, "MacheteLinearKernel", None),
        ("W4A16", 10.0, "MarlinLinearKernel", None),
        ("W3A16", 9.0, "HummingLinearKernel", None),
        ("NVFP4A16", 10.0, "MarlinNvFp4LinearKernel", None),
        ("NVFP4", 9.0, "MarlinNvFp4LinearKernel", "W4A16"),
        ("NVFP4", 10.0, "FlashInferCuteDslNvFp4LinearKernel", None),
        ("NVFP4", 12.0, "FlashInferCutlassNvFp4LinearKernel", None),
        ("MXFP4", 9.0, "MarlinMxFp4LinearKernel", "W4A16"),
        ("MXFP4A16", 9.0, "MarlinMxFp4LinearKernel", None),
        ("MXFP4A16", 10.0, "FlashInferMxFp4LinearKernel", "W4A4"),
        ("MXFP8", 8.0, "MarlinMxfp8LinearKernel", "W8A16"),
    ],
)
def test_what_a_gpu_computes_a_format_with(name, capability, kernel, effective):
    found = answer(FORMATS[name], on(capability))
    assert found.kernels[0] == kernel
    assert found.effective == effective
    assert found.refusal is None and found.unknown is None


@pytest.mark.parametrize(
    ("quantized", "device", "said"),
    [
        (
            FORMATS["W8A8"],
            on(10.0),
            r"Blackwell.*linear_backend: triton\} for it \(TritonInt8.*\(T4, .*H100\).*engine=transf",
        ),
        (FORMATS["W8A8"], on(12.0), r"Blackwell"),
        (PACKED, on(8.0), r"Hopper alone; plan for another GPU \(H100\)"),
        (PACKED, on(10.0), r"Hopper alone"),
        (FORMATS["W4AFP8"], on(9.0), r"packed .* each value has a byte .*; choose engine=transformers or another rec"),
        (FORMATS["MXFP4"], on(7.5), r"compute capability 8.0; plan for another GPU \(B200"),
        (FORMATS["NVFP4"], CPU, r"4-bit inputs are not simulated on a CPU; plan for a GPU \(B200"),
        (FORMATS["FP8_BLOCK"], CPU, r"groups of inputs are not simulated on a CPU; plan for a GPU \(L4"),
        (replace(FORMATS["W4A16"], packing="naive-quantized"), on(9.0), r"vLLM 0.26.0 has no scheme for it; choose"),
    ],
)
def test_what_does_not_run_says_what_would_do_in_one_line(quantized, device, said):
    found = answer(quantized, device)
    assert found.kernels == () and found.effective is None
    assert re.search(said, found.refusal) and "\n" not in found.refusal


@pytest.mark.parametrize("name", FORMATS)
def test_on_a_cpu_the_table_refuses_what_cannot_be_simulated_and_nothing_else(name):
    inputs = FORMATS[name].activations
    args = None if inputs is None else asdict(inputs)
    try:
        simulated = input_formats({"config_groups": {"group_0": {"input_activations": args}}}) is not None
    except ConfigError:
        simulated = False
    assert bool(answer(FORMATS[name], CPU).kernels) is simulated


def test_what_depends_on_the_model_is_not_known_before_it_runs():
    found = answer(FORMATS["FP8_BLOCK"], on(12.0))
    assert "depends on the model's type" in found.unknown and varies(FORMATS["FP8_BLOCK"])
    assert answer(FORMATS["FP8_BLOCK"], on(12.0), backend="cutlass").usual == ("CutlassFp8BlockScaledMMKernel",)


def test_every_backend_that_is_advised_takes_the_format():
    found = answer(FORMATS["W8A8"], on(10.0), backend="triton")
    assert found.kernels == ("TritonInt8ScaledMMLinearKernel",) and found.effective is None
    assert "linear_backend deep_gemm has no kernel" in answer(FORMATS["W8A8"], on(10.0), backend="deep_gemm").refusal


def test_emulation_is_found_only_where_it_alone_rounds_as_the_format_says():
    found = emulated(FORMATS["NVFP4"], on(9.0))
    assert found.kernels == ("EmulationNvFp4LinearKernel",) and found.emulates and "emulated" in found.caution
    for name, capability in (("NVFP4", 10.0), ("MXFP4", 9.0), ("MXFP8", 9.0), ("W4A16", 9.0)):
        assert emulated(FORMATS[name], on(capability)) is None


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (on(9.0, "0.31.0"), r"the table of kernels is of vLLM 0.26.0, not of 0.31.0"),
        (on(11.0), r"no compute capability 11"),
        (on(None), r"gpu=NAME"),
        (Device(True, None, "0.31.0"), r"vLLM 0.32.0"),
    ],
)
def test_what_the_table_does_not_know_it_says(device, said):
    found = answer(FORMATS["NVFP4"], device)
    assert re.search(said, found.unknown) and found.kernels == () and found.refusal is None and found.caution is None


@pytest.mark.parametrize(("name", "gpu"), product(FORMATS, GPUS))
def test_every_format_has_an_answer_for_every_gpu(name, gpu):
    """Kernels, or why there are none and what would do."""
    capability = GPUS[gpu]
    found = answer(FORMATS[name], CPU if gpu == "none" else on(capability))
    assert [bool(each) for each in (found.kernels, found.refusal, found.unknown)].count(True) == 1
    assert not found.refusal or ";" in found.refusal
    assert (found.unknown is not None) is (name == "FP8_BLOCK" and (capability or 0) >= 10)


def test_what_recipes_can_make_runs_on_every_gpu_of_conf_but_int8_on_blackwell():
    refused = []
    for (name, quantized), gpu in product(FORMATS.items(), GPUS):
        for group_size in (32, 64, 128) if quantized.takes_group_size else (None,):
            found = answer(quantized.with_group_size(group_size), CPU if gpu == "none" else on(GPUS[gpu]))
            if quantized.is_supported and not found.kernels:
                refused.append((name, gpu))
    assert sorted(refused) == [("W8A8", "b200"), ("W8A8", "rtx_pro_6000")]


def test_a_kernel_that_two_gpus_have_makes_the_same_of_a_format():
    """Or a run could not be told by its kernels."""
    for quantized in [*FORMATS.values(), PACKED]:
        for capability in table().capabilities:
            found = answer(quantized, on(capability))
            if found.kernels:
                assert rounds_of(quantized, found.kernels) is not None
                assert computed_as([quantized], found.kernels) == (found.effective or found.label)


def test_of_a_checkpoint_of_several_formats_one_that_does_not_run_is_enough():
    mixed = [FORMATS["NVFP4"], FORMATS["FP8_DYNAMIC"], FORMATS["NVFP4"]]
    found = answer_all(mixed, on(9.0))
    assert (found.label, found.effective) == ("W4A4 and W8A8", "W4A16 and W8A8")
    assert found.usual == ("MarlinNvFp4LinearKernel", "CutlassFP8ScaledMMLinearKernel")
    assert answer_all(mixed, on(10.0)).effective is None
    assert "Blackwell" in answer_all([*mixed, FORMATS["W8A8"]], on(10.0)).refusal
    assert answer_all([], on(9.0)) is None


@pytest.mark.parametrize(
    ("quantized", "capability", "kernel"),
    [
        (replace(FORMATS["FP8"], packing="fp8"), 8.0, "MarlinFP8ScaledMMLinearKernel"),
        (replace(FORMATS["FP8_BLOCK"], packing="fp8"), 9.0, "FlashInferFp8DeepGEMMDynamicBlockScaledKernel"),
        (replace(FORMATS["W4A16_ASYM"], packing="awq"), 9.0, "MacheteLinearKernel"),
        (replace(FORMATS["W4A16"], packing="gptq"), 8.0, "MarlinLinearKernel"),
        (replace(FORMATS["NVFP4"], packing="modelopt"), 9.0, "MarlinNvFp4LinearKernel"),
    ],
)
def test_other_methods_share_the_kernels(quantized, capability, kernel):
    assert answer(quantized, on(capability)).usual == (kernel,)
    assert "experts" in answer(replace(FORMATS["MXFP4A16"], packing="mxfp4"), on(capability)).unknown


def test_only_formats_that_some_gpu_computes_otherwise_vary():
    names = ("W4A16", "W8A16", "NVFP4A16", "W8A8", "FP8", "NVFP4", "MXFP4A16")
    assert [name for name in names if varies(FORMATS[name])] == ["W8A8", "FP8", "NVFP4", "MXFP4A16"]


README = Path(__file__).parents[3] / "stages" / "checkpoints" / "README.md"
SHOWN = FORMATS | {
    f"{name} (packed)": replace(FORMATS[name], packing="pack-quantized") for name in ("W4AFP8", "W4A8", "W4A4", "W3A8")
}


def readme_table() -> str:
    """The table of README.md: a column for capabilities that are alike, a row for formats that are."""
    notes: dict[str, int] = {}

    def cell(found: Answer) -> str:
        why = (found.unknown or found.refusal or "").partition(";")[0]
        word = "not known" if found.unknown else "no"
        return found.shown if found.kernels else f"{word} ({notes.setdefault(why, len(notes) + 1)})"

    devices = {**{f"{each:g}": on(each) for each in table().capabilities}, "CPU": CPU}
    columns: dict[tuple[str, ...], list[str]] = {}
    for place, device in devices.items():
        columns.setdefault(tuple(cell(answer(each, device)) for each in SHOWN.values()), []).append(place)
    rows: dict[tuple[str, ...], list[str]] = {}
    for index, name in enumerate(SHOWN):
        rows.setdefault(tuple(column[index] for column in columns), []).append(name)
    lines = [["format", *(", ".join(places) for places in columns.values())], ["---"] * (len(columns) + 1)]
    lines += [[", ".join(names), *row] for row, names in rows.items()]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return grid + "\n\n" + "\n".join(f"{number}. {why}" for why, number in notes.items()) + "\n"


def test_the_readme_shows_the_table():
    assert readme_table() in README.read_text(), f"stages/checkpoints/README.md must hold this:\n{readme_table()}"


def test_backends_name_kernels_of_the_table():
    named = {kernel.name for row in table().rows for kernel in row.kernels}
    assert {name for names in table().backends.values() for name in names} <= named
