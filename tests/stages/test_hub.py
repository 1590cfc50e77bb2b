"""Of a hub's repository comes what is wanted, and nothing else."""

import shutil

import pytest

from stages.errors import CheckpointError, DataError
from stages.fetch import DatasetSource, ModelSource, fetch_dataset, fetch_model
from stages.local_files import digest_tree
from stages.published import QUANTIZED, PublishedSource, fetch_published, read_described
from tests.stages.checkpoints.written import AWQ, write_model, write_quantized

SHA = "0123456789abcdef0123456789abcdef01234567"


def test_of_a_repository_comes_what_is_the_model_and_nothing_else(hub_cache, model_dir, out):
    snapshot = hub_cache / "models--org--name" / "snapshots" / SHA
    shutil.copytree(model_dir, snapshot)
    wanted = {file.name for file in snapshot.iterdir()} | {"processor_config.json", "tekken.json"}
    (snapshot / "original").mkdir()
    for name in ("original/model.safetensors", "consolidated.safetensors", "model.fp16.safetensors"):
        shutil.copy(model_dir / "model.safetensors", snapshot / name)
    for name in ("processor_config.json", "tekken.json", "original/params.json", "params.json", "adapter_config.json"):
        (snapshot / name).write_text("{}")
    (snapshot / "tokenization_own.py").write_text("raise SystemExit")
    metrics = fetch_model(ModelSource(repo_id="org/name", revision=SHA), {}, out)
    assert {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()} == wanted
    assert metrics["num_parameters"] * 2 == metrics["size_gib"] * 2**30


@pytest.mark.parametrize("fetch", [fetch_model, fetch_dataset])
def test_offline_without_a_cached_copy_says_so(hub_cache, out, fetch):
    source = ModelSource if fetch is fetch_model else DatasetSource
    with pytest.raises(DataError, match=r"org/name@0123456789ab .* HF_HUB_OFFLINE is set") as refusal:
        fetch(source(repo_id="org/name", revision=SHA), {}, out)
    assert "\n" not in str(refusal.value)


def test_offline_model_comes_from_the_hub_cache(hub_cache, model_dir, out):
    snapshot = hub_cache / "models--org--name" / "snapshots" / SHA
    shutil.copytree(model_dir, snapshot)
    (snapshot / "modeling_custom.py").write_text("raise SystemExit")
    fetch_model(ModelSource(repo_id="org/name", revision=SHA), {}, out)
    assert digest_tree(out) == digest_tree(model_dir)


def test_offline_data_set_comes_from_the_hub_cache_without_scripts(hub_cache, out):
    snapshot = hub_cache / "datasets--org--name" / "snapshots" / SHA
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train.jsonl").write_text('{"text": "a"}\n')
    (snapshot / "name.py").write_text("raise SystemExit")
    assert fetch_dataset(DatasetSource(repo_id="org/name", revision=SHA), {}, out)["num_files"] == 1
    assert (out / "data" / "train.jsonl").read_text() == '{"text": "a"}\n'


def test_of_a_published_checkpoint_come_its_small_files_and_the_weights_of_its_index(hub_cache, out, tmp_path):
    base = write_model(tmp_path / "base")
    snapshot = hub_cache / "models--org--name" / "snapshots" / SHA
    snapshot.parent.mkdir(parents=True)
    write_quantized(snapshot, AWQ)
    (snapshot / "modeling_own.py").write_text("raise SystemExit")
    (snapshot / "consolidated.safetensors").write_bytes(b"no part of it")
    metrics = fetch_published(PublishedSource(repo_id="org/name", revision=SHA), {"model": base}, out)
    assert {file.name for file in out.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors", QUANTIZED}
    assert (metrics["num_quantized_layers"], metrics["num_kept_layers"]) == (14, 1)
    described = read_described(out)
    assert described is not None and (described.method, described.bits, described.kv_cache) == ("awq", 4, None)


def test_the_weights_of_another_model_s_checkpoint_are_not_fetched(hub_cache, out, tmp_path):
    base = write_model(tmp_path / "base")
    snapshot = hub_cache / "models--org--name" / "snapshots" / SHA
    snapshot.parent.mkdir(parents=True)
    write_quantized(snapshot, AWQ, vocab_size=1024)
    with pytest.raises(
        CheckpointError, match=r"^model org/name@0123456789ab is no checkpoint of its base: vocab_size is"
    ):
        fetch_published(PublishedSource(repo_id="org/name", revision=SHA), {"model": base}, out)
    assert not list(out.glob("*.safetensors"))
