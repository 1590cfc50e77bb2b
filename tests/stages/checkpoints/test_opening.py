"""Models and checkpoints are opened in one way: rotated as they were made, and nothing of them invented."""

import pytest
import torch

from stages.checkpoints.opening import load_model
from stages.errors import CheckpointError
from tests.stages.gate.checkpoints import VOCABULARY, compress, damage, drop, rotated, save_llama

pytestmark = pytest.mark.dear


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("base") / "llama", tiny_model)


@pytest.fixture(scope="module")
def with_rotations(base, tmp_path_factory):
    return rotated(base, tmp_path_factory.mktemp("rotated") / "checkpoint")


def logits(model):
    ids = torch.randint(0, VOCABULARY, (1, 32), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return model(ids).logits[0].float()


def distance(one, other):
    return float((one - other).norm() / other.norm())


def test_a_rotated_checkpoint_computes_like_its_base(base, with_rotations):
    from transformers import AutoModelForCausalLM

    of_base = logits(load_model(base, dtype="auto"))
    assert distance(logits(load_model(with_rotations, dtype="auto")), of_base) < 0.25
    plain = AutoModelForCausalLM.from_pretrained(with_rotations, dtype="auto")
    assert distance(logits(plain), of_base) > 0.5  # what is refused here: noise


def test_a_rotation_that_is_not_stored_is_refused(with_rotations, tmp_path):
    (name, *_) = [name for name in _names(with_rotations) if "_input.weight" in name]
    path = damage(with_rotations, tmp_path / "damaged", drop(name))
    with pytest.raises(CheckpointError, match=rf"the rotation {name} is missing"):
        load_model(path, dtype="auto")


def test_weights_are_not_invented(base, tmp_path):
    path = damage(base, tmp_path / "damaged", drop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.up_proj.weight is missing, and a loader would inve"):
        load_model(path, dtype="auto")


def test_scales_are_not_invented(base, tmp_path):
    checkpoint = compress(base, tmp_path / "checkpoint", "W4A16")
    path = damage(checkpoint, tmp_path / "damaged", drop("model.layers.1.mlp.up_proj.weight_scale"))
    with pytest.raises(CheckpointError, match=r"up_proj.weight_scale is missing"):
        load_model(path, dtype="auto")


def _names(checkpoint):
    from safetensors import safe_open

    with safe_open(checkpoint / "model.safetensors", framework="pt") as tensors:
        return list(tensors.keys())
