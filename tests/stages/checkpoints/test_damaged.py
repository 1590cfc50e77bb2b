"""Descriptions of a model that are damaged are named in one line, before anything of it is used."""

import json
from pathlib import Path

import pytest

from stages.checkpoints.checks import check_model_path
from stages.checkpoints.headers import read_tensor_infos
from stages.checkpoints.shape import ModelShape
from stages.errors import CheckpointError, DataError

CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 384,
}
DAMAGED = ["", '{"hidden_size": 6', "[]", "3", "null", '"text"', "[" * 100_000, "\udcff"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_text("")
    return tmp_path


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json"]
)
def test_a_damaged_description_of_a_model_is_named(model: Path, name: str, text: str) -> None:
    (model / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=rf"{name} (cannot be read|holds no JSON object).*fetch it again"):
        check_model_path(model)


@pytest.mark.parametrize("name", [*CONFIG, "head_dim", "num_key_value_heads"])
@pytest.mark.parametrize("value", ["64", 0, -1, 1.5, True, [], {}])
def test_a_size_that_is_none_is_named(model: Path, name: str, value: object) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | {name: value}))
    with pytest.raises(DataError, match=f"config.json: {name} is"):
        ModelShape.from_config(model / "config.json")


def test_what_a_config_leaves_to_others_is_not_damage(model: Path) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | {"head_dim": None, "num_key_value_heads": None}))
    shape = ModelShape.from_config(model / "config.json")
    assert (shape.head_dim, shape.num_key_value_heads) == (16, 4)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_of_weights_is_named(model: Path, text: str) -> None:
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged; fetch it again"):
        read_tensor_infos(model)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [8, 16]}, "b, F32 of shape .4., 8 bytes where it needs 16"),
        ({"dtype": "BF16", "shape": [4], "data_offsets": [4, 12]}, "puts b where another tensor is"),
    ],
)
def test_a_header_that_lies_about_a_tensor_is_named(tmp_path: Path, second: dict[str, object], message: str) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}, "b": second}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CheckpointError, match=message):
        read_tensor_infos(tmp_path)
