"""Somebody else's checkpoint beside its base: what is broken is named, and what is not is let through."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.errors import CheckpointError, DataError
from stages.gate.artifact import Check, read_checks
from stages.gate.config import GateConfig, ObserveConfig
from stages.gate.observe import observe
from stages.gate.published import check_published
from stages.gate.stage import gate
from stages.published import PublishedSource, fetch_published, read_described
from tests.quantized import change, dequantized_awq, read_weights, save_awq, save_fp8_blocks, save_gptq

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def fp8(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fp8_blocks(tiny_model, tmp_path_factory.mktemp("fp8"))


@pytest.fixture(scope="module")
def observed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("observed")
    observe(ObserveConfig(num_probe_tokens=4), {"model": tiny_model}, path)
    return path


@pytest.fixture
def gated(tiny_model: Path, observed: Path, tmp_path: Path) -> Callable[[Path], dict[str, Check]]:
    """Fetches a checkpoint and takes it through the gate; its checks by name, also where it fails."""

    def run(checkpoint: Path) -> dict[str, Check]:
        fetched, out = tmp_path / "fetched", tmp_path / "gate"
        fetched.mkdir()
        out.mkdir()
        fetch_published(PublishedSource(path=str(checkpoint)), {"model": tiny_model}, fetched)
        inputs = {"base": tiny_model, "checkpoint": fetched, "observed": observed}
        try:
            gate(GateConfig(num_probe_tokens=4), inputs, out)
        except CheckpointError as error:
            assert "fetch it again, or take another checkpoint" in str(error)
            assert "\n" not in str(error)
        return {check.name: check for check in read_checks(out)}

    return run


def test_an_intact_checkpoint_passes_and_its_headers_are_told(
    gated: Callable[[Path], dict[str, Check]], fp8: Path, tiny_model: Path, tmp_path: Path
) -> None:
    checks = gated(fp8)
    assert all(check.passed for check in checks.values()), checks
    assert checks["tensors_kept"].detail == "7 as in the base"
    assert checks["mean_kl"].value is not None and 0 < checks["mean_kl"].value < 1e-3
    described = read_described(tmp_path / "fetched")
    assert described is not None
    layers = {name.removesuffix(".weight") for name in read_weights(tiny_model) if "proj" in name}
    assert (set(described.layers), described.kept) == (layers, ["lm_head"])
    assert {file.name for file in fp8.iterdir()} < {file.name for file in (tmp_path / "fetched").iterdir()}


def _spoil_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}_scale_inv"][0, 0] = torch.nan


def _negate_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}_scale_inv"] *= -1


def _spoil_code(tensors: Tensors) -> None:
    tensors[LAYER].view(torch.uint8)[0, 0] = 0x7F  # E4M3's NaN


def _spoil_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"][0] = torch.inf


def _drop(tensors: Tensors) -> None:
    del tensors["model.norm.weight"]


def _swap(tensors: Tensors) -> None:
    for part in ("", "_scale_inv"):
        up, gate = f"{LAYER}{part}", f"{LAYER}{part}".replace("up_proj", "gate_proj")
        tensors[up], tensors[gate] = tensors[gate].clone(), tensors[up].clone()


def _cut(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:32].clone()


@pytest.mark.parametrize(
    ("mutate", "check", "named"),
    [
        (_spoil_scale, "scales_finite_positive", f"{LAYER}_scale_inv with a scale"),
        (_negate_scale, "scales_finite_positive", f"{LAYER}_scale_inv with a scale"),
        (_spoil_code, "tensors_finite", f"{LAYER} with NaN or infinity"),
        (_spoil_norm, "tensors_finite", "model.norm.weight with NaN or infinity"),
        (_drop, "tensors_present", "model.norm.weight of the base missing"),
        (_swap, "weights_close", "model.layers.0.mlp.gate_proj.weight and 1 more far from the base's weights"),
        (_cut, "tensors_kept", "model.norm.weight of another shape than the base's"),
    ],
)
def test_what_is_broken_is_named(
    gated: Callable[[Path], dict[str, Check]],
    fp8: Path,
    tmp_path: Path,
    mutate: Callable[[Tensors], None],
    check: str,
    named: str,
) -> None:
    found = gated(change(fp8, tmp_path / "broken", mutate))
    assert found[check].passed is False
    assert found[check].detail.startswith(named)


def test_tensors_that_a_method_moved_factors_into_are_told_and_no_fault(
    gated: Callable[[Path], dict[str, Check]], fp8: Path, tmp_path: Path
) -> None:
    def scale(tensors: Tensors) -> None:
        tensors["model.norm.weight"] *= 1.25
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].half()

    found = gated(change(fp8, tmp_path / "scaled", scale))["tensors_kept"]
    assert found.passed
    assert (
        found.detail == "model.norm.weight differing from the base's; model.embed_tokens.weight stored in another type"
    )


def test_what_transformers_does_not_read_is_checked_by_its_files_alone(
    gated: Callable[[Path], dict[str, Check]], tiny_model: Path, tmp_path: Path
) -> None:
    checks = gated(save_gptq(tiny_model, tmp_path / "gptq"))
    assert checks["tensors_present"].passed and checks["size_ratio"].passed
    assert checks["model_loads"].passed is None
    assert "reads no checkpoint in the form gptq" in checks["model_loads"].detail
    assert "mean_kl" not in checks


def test_one_that_is_not_what_its_place_declares_is_refused_where_it_is_fetched(
    tiny_model: Path, fp8: Path, tmp_path: Path
) -> None:
    def fetch(name: str, scheme: str) -> None:
        (tmp_path / name).mkdir()
        source = PublishedSource(path=str(fp8), method="compressed-tensors", scheme=scheme)
        fetch_published(source, {"model": tiny_model}, tmp_path / name)

    fetch("right", "FP8_DYNAMIC")
    with pytest.raises(DataError, match=r"it is W8A8, and its scheme NVFP4 declares W4A4: correct it, or leave it out"):
        fetch("wrong", "NVFP4")
    with pytest.raises(ValueError, match=r"scheme says what a method stores, as one of FP8_DYNAMIC.*got 'FP9' with"):
        PublishedSource(path=str(fp8), method="fp8", scheme="FP9")


def test_one_of_another_model_is_refused_where_it_is_fetched(tiny_model: Path, fp8: Path, tmp_path: Path) -> None:
    other = change(tiny_model, tmp_path / "other", hidden_size=128)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        CheckpointError, match=r"model path .* is no checkpoint of its base: hidden_size is 64"
    ) as refused:
        fetch_published(PublishedSource(path=str(fp8)), {"model": other}, tmp_path / "out")
    assert str(tmp_path / "out") not in str(refused.value)


def test_awq_is_read_by_its_codes_and_passes(
    gated: Callable[[Path], dict[str, Check]], tiny_model: Path, tmp_path: Path
) -> None:
    from stages.checkpoints.opening import load_model

    awq = save_awq(tiny_model, tmp_path / "awq")
    model = load_model(awq, dtype=torch.float32)
    model(torch.arange(8)[None])  # compressed-tensors dequantizes on the way
    own = dict(model.named_parameters())
    wanted = dequantized_awq(tiny_model)
    assert len(wanted) == 14
    assert all(torch.equal(own[name], weight) for name, weight in wanted.items())
    checks = gated(awq)
    assert all(check.passed for check in checks.values()), checks
    assert checks["mean_kl"].value is not None and 0 < checks["mean_kl"].value < 1e-3


def test_names_of_another_wrapper_and_layers_that_no_loader_takes_are_no_fault(
    fp8: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Layers for speculation lie in many bases and in few checkpoints; tools call the language model otherwise."""

    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[f"model.language_{name}"] = tensors.pop(name)

    def speculate(tensors: Tensors) -> None:
        tensors["mtp.layers.0.mlp.up_proj.weight"] = torch.ones(8, 64, dtype=torch.bfloat16)

    base = change(tiny_model, tmp_path / "base", speculate)
    checks = {check.name: check for check in check_published(base, change(fp8, tmp_path / "renamed", rename))}
    assert checks["tensors_present"].passed, checks["tensors_present"].detail
    assert checks["tensors_kept"].detail == "7 as in the base"
    assert checks["weights_close"].detail == "14 weights compared"
