"""Drift: no distance from oneself, the textbook's numbers for another model, an interval over documents."""

import json
import math
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stages.calibrate import SEQUENCES, read_sequences
from stages.drift import FACTS, DriftConfig, drift, read_drift
from stages.errors import ConfigError, DataError
from stages.quantize import Algorithm


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Six documents of 20 to 45 tokens."""
    path, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    documents = [rng.integers(3, 380, size=20 + 5 * number).tolist() for number in range(6)]
    pq.write_table(pa.table({"input_ids": pa.array(documents, pa.list_(pa.int32()))}), path / "calibration.parquet")
    return path


@pytest.fixture
def run(tiny_model, text, tmp_path):
    def measured(checkpoint, **config):
        inputs = {"base": tiny_model, "checkpoint": checkpoint, "text": text}
        return drift(DriftConfig(num_resamples=500, **config), inputs, tmp_path)

    return measured


def expectations(model_dir, text):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto", device_map="cpu").eval()
    documents = pq.read_table(text / "calibration.parquet")["input_ids"].to_pylist()
    with torch.inference_mode():
        return [model(torch.tensor([document])).logits[0].double().softmax(dim=-1).numpy() for document in documents]


def test_a_model_has_not_drifted_from_itself(run, tiny_model):
    found = run(tiny_model)
    assert [found[name] for name in ("mean_kl", "mean_kl_low", "mean_kl_high")] == [0, 0, 0]
    assert [found[f"top1_agreement{end}"] for end in ("", "_low", "_high")] == [1, 1, 1]
    assert found["loss"] == found["base_loss"] == pytest.approx(math.log(384), rel=0.1)  # random weights guess
    assert (found["num_documents"], found["num_tokens"]) == (6, sum(range(20, 46, 5)))


def test_divergence_and_agreement_are_the_textbooks_over_the_whole_vocabulary(
    run, tiny_model, text, quantize_tiny, tmp_path
):
    checkpoint = quantize_tiny(algorithm=Algorithm.rtn, scheme="W4A16", group_size=32)
    found = run(checkpoint)
    base, other = (np.concatenate(expectations(path, text)) for path in (tiny_model, checkpoint))
    assert found["mean_kl"] == pytest.approx((base * np.log(base / other)).sum(axis=1).mean(), rel=0.02)
    agreement = (base.argmax(axis=1) == other.argmax(axis=1)).mean()
    assert found["top1_agreement"] == pytest.approx(agreement, abs=0.02)
    assert 0 < found["mean_kl_low"] < found["mean_kl"] < found["mean_kl_high"]
    assert found["top1_agreement_low"] <= found["top1_agreement"] <= found["top1_agreement_high"] < 1
    rows = pq.read_table(tmp_path / "drift.parquet").to_pylist()
    weights = [row["num_tokens"] for row in rows]
    assert np.average([row["mean_kl"] for row in rows], weights=weights) == pytest.approx(found["mean_kl"])
    assert json.loads((tmp_path / "drift.json").read_text()) == found == asdict(read_drift(tmp_path))


def test_what_does_not_fit_the_disk_is_refused_before_a_model_is_loaded(run, tiny_model, monkeypatch):
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"take 0\.0 GiB.*set TMPDIR") as refused:
        run(tiny_model)
    assert "\n" not in str(refused.value)


def test_damaged_facts_and_texts_are_named(tmp_path):
    (tmp_path / FACTS).write_text('{"num_documents": 2}')
    with pytest.raises(DataError, match=r"drift.json cannot be read.*delete it and run again"):
        read_drift(tmp_path)
    (tmp_path / SEQUENCES).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"calibration.parquet cannot be read.*delete it and run again"):
        read_sequences(tmp_path)
