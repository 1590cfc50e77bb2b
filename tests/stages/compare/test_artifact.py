"""A comparison reads back as what was compared, and so do those of earlier versions."""

import json

import pytest

from stages.compare.artifact import FACTS, NUMBERS, SCHEMA, TABLE, Numbers, read_comparison, read_rows
from stages.compare.config import CompareConfig
from stages.compare.stage import compare
from stages.errors import DataError


@pytest.fixture
def written(write_evaluation, tmp_path):
    shards = {"trial/t/0": write_evaluation("t", [1.0, 0.0, 1.0]), "base/t/0": write_evaluation("t", [1.0, 1.0, 0.0])}
    config = CompareConfig(task="t", leaves=["t"], random_baseline=0.25)
    return compare(config, shards, tmp_path), tmp_path


def test_a_comparison_reads_back(written):
    metrics, path = written
    found, rows = read_comparison(path), read_rows(path)
    facts = found.facts
    assert (facts.task, facts.metric, facts.metrics, facts.confidence) == ("t", "acc,none", ["acc,none"], 0.95)
    assert {name: getattr(facts.headline, name) for name in NUMBERS} == metrics
    assert facts.leaves["t"].num_documents == 3 and facts.leaves["t"].comparable["num_fewshot"] == 5
    assert rows.schema.names == SCHEMA.names and [row["leaf"] for row in rows.to_pylist()] == ["t", None]
    raw, normalized = facts.errors.raw, facts.errors.normalized
    assert raw.base == pytest.approx(2 / 9 / 2) and raw.covariance == pytest.approx(-1 / 3 / 2)
    assert normalized.difference == pytest.approx(raw.difference * (100 / 0.75) ** 2)


def test_a_comparison_from_before_normalized_scores_reads_back(written):
    _, path = written
    document = json.loads((path / FACTS).read_text())
    del document["random_baseline"], document["leaf_baselines"], document["headline"]["normalized"]
    (path / FACTS).write_text(json.dumps(document))
    facts = read_comparison(path).facts
    assert facts.headline.score == 2 / 3 and facts.headline.normalized is None
    assert (facts.random_baseline, facts.leaf_baselines) == (None, {})


@pytest.mark.parametrize("name", [TABLE, FACTS])
def test_a_damaged_file_is_named(written, name):
    _, path = written
    (path / name).write_text('{"headline": {"score": "high"}}')
    with pytest.raises(DataError, match=rf"{name} cannot be read.*delete it and run again"):
        {TABLE: read_rows, FACTS: read_comparison}[name](path)


def test_every_number_is_a_column():
    assert SCHEMA.names[4:] == list(Numbers.__dataclass_fields__)
