"""Which checkpoints are of one family, and the directory by which vLLM knows all of them."""

import json
import multiprocessing
from pathlib import Path

import pytest

from stages.errors import CheckpointError
from stages.evaluate.engines.family import cache_folder, canonical_config, family, view

WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
TENSORS = {"model.embed_tokens.weight": ("BF16", [4, 2]), "model.layers.0.mlp.up_proj.weight_scale": ("BF16", [2, 2])}


def make(path, tensors=TENSORS, fill=b"\1", tokenizer="{}", weights=None, **config):
    """A checkpoint directory whose tensors are all the same byte."""
    path.mkdir(parents=True)
    group = {"targets": ["Linear"], "weights": WEIGHTS | (weights or {})}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "version": "0.1"}
    described = {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization} | config
    (path / "config.json").write_text(json.dumps(described))
    (path / "tokenizer.json").write_text(tokenizer)
    header, end = {}, 0
    for name, (dtype, (rows, columns)) in tensors.items():
        offsets = [end, end := end + 2 * rows * columns]
        header[name] = {"dtype": dtype, "shape": [rows, columns], "data_offsets": offsets}
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + fill * end)
    return path


HEAD = {"lm_head.weight": ("BF16", [4, 2])}


def test_recipes_that_differ_in_how_scales_are_observed_are_of_one_family(tmp_path):
    first = make(tmp_path / "a", TENSORS | HEAD, weights={"observer": "minmax", "actorder": None})
    observed = {"observer": "mse", "observer_kwargs": {"p": 2.4}, "actorder": "static"}
    second = make(tmp_path / "b", TENSORS | HEAD, b"\2", weights=observed, transformers_version="9", _name_or_path="x")
    assert family(first) == family(second)
    assert canonical_config(first) == canonical_config(second)


@pytest.mark.parametrize(
    "other",
    [
        {"weights": {"group_size": 64}},
        {"weights": {"actorder": "group"}},
        {"tokenizer": '{"a": 1}'},
        {"tensors": HEAD | {"model.embed_tokens.weight": ("BF16", [4, 2])}},
        {"tensors": TENSORS | HEAD | {"model.layers.0.mlp.up_proj.weight_scale": ("F16", [2, 2])}},
        {"tensors": TENSORS | HEAD | {"model.embed_tokens.weight": ("BF16", [2, 4])}},
        {"rope_theta": 5.0},
    ],
    ids=["format", "order", "tokenizer", "half", "type", "shape", "model"],
)
def test_what_an_engine_would_notice_makes_another_family(tmp_path, other):
    assert family(make(tmp_path / "a", TENSORS | HEAD)) != family(
        make(tmp_path / "b", **({"tensors": TENSORS | HEAD} | other))
    )


def test_an_embedding_that_is_the_head_as_well_counts_with_its_bytes(tmp_path):
    tied = [family(make(tmp_path / f"tied{fill[0]}", TENSORS, fill)) for fill in (b"\1", b"\2")]
    untied = [family(make(tmp_path / f"untied{fill[0]}", TENSORS | HEAD, fill)) for fill in (b"\1", b"\2")]
    assert tied[0] != tied[1]
    assert untied[0] == untied[1]


def test_a_damaged_checkpoint_is_of_no_family(tmp_path):
    path = make(tmp_path / "a")
    (path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        family(path)
    with pytest.raises(CheckpointError):
        family(tmp_path)


def test_members_are_seen_under_one_path_one_after_the_other(tmp_path):
    first, second = make(tmp_path / "a", weights={"observer": "mse"}), make(tmp_path / "b", fill=b"\2")
    (first / "recipe.yaml").write_text("")
    seen = []
    for checkpoint in (first, second, first):
        with view(checkpoint, tmp_path / "family") as place:
            assert (place / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
            assert json.loads((place / "config.json").read_text()) == canonical_config(second)
            assert {file.name for file in place.iterdir()} == {file.name for file in checkpoint.iterdir()}
            seen.append(place)
    assert len(set(seen)) == 1
    assert (first / "config.json").read_text() != (seen[0] / "config.json").read_text()


def _hold(checkpoint, folder, connection):
    with view(checkpoint, folder) as place:
        connection.send((str(place), (place / "model.safetensors").read_bytes()))
        connection.recv()


def test_engines_that_open_at_once_do_not_see_each_other(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b", fill=b"\2")
    here, there = multiprocessing.get_context("fork").Pipe()
    other = multiprocessing.get_context("fork").Process(target=_hold, args=(first, tmp_path / "family", there))
    other.start()
    place, content = here.recv()
    with view(second, tmp_path / "family") as mine:
        assert mine != Path(place)
        assert (mine / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
        assert (Path(place) / "model.safetensors").read_bytes() == content
    here.send(None)
    other.join()
    with view(second, tmp_path / "family") as again:
        assert again == Path(place), "what a process held that has ended is used again"


def test_where_no_directory_can_be_made_the_checkpoint_is_opened_where_it_is(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoint = make(tmp_path / "a")
    with view(checkpoint, tmp_path / "file" / "family") as place:
        assert place == checkpoint


def test_what_is_compiled_is_shared_by_a_family_and_by_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = make(tmp_path / "a", TENSORS | HEAD, weights={"observer": "mse"})
    second, other = make(tmp_path / "b", TENSORS | HEAD, b"\2"), make(tmp_path / "c", TENSORS | HEAD, rope_theta=5.0)
    assert cache_folder(first, "0.9-auto") == cache_folder(second, "0.9-auto")
    assert len({cache_folder(first, "0.9-auto"), cache_folder(other, "0.9-auto"), cache_folder(first, "0.5-auto")}) == 3
    machine = cache_folder(first, "0.9-auto").parent.name
    monkeypatch.setattr("stages.evaluate.engines.family.read_gpus", lambda number: [GPU])
    on_gpu = cache_folder(first, "0.9-auto").parent.name
    assert machine.endswith("cpu") and "torch-" in machine
    assert on_gpu.endswith("NVIDIA_H100_80GB_HBM3_580.65")


class GPU:
    product, driver = "NVIDIA H100 80GB HBM3", "580.65"
