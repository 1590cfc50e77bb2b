"""Scores read back: its documents in order, and how they were asked."""

import pytest

from stages.errors import DataError
from stages.evaluate.artifact import (
    SAMPLES,
    TASK,
    MetricFacts,
    Sample,
    ScoreFacts,
    TaskFacts,
    read_leaf_facts,
    read_samples,
    write_scores,
)

FACTS = TaskFacts(
    task="t",
    version=1.0,
    output_type="generate_until",
    num_docs=10,
    metrics={
        "acc,none": MetricFacts(aggregation={"name": "mean"}, higher_is_better=True),
        "f1,none": MetricFacts(aggregation={"file": "t/f1.py", "function": "f1"}, higher_is_better=None),
    },
    scoring={"one_token": "exact"},
    comparable={"engine": "vllm", "system_instruction": "Größe", "gen_kwargs": {"until": ["\n"]}},
)


@pytest.fixture
def written(tmp_path):
    def sample(doc_id, **fields):
        return Sample(doc_id=doc_id, doc_digest=f"d{doc_id}", prompt_digest=f"p{doc_id}", target="x", **fields)

    samples = [sample(1, error="ValueError: no"), sample(0, metrics={"acc,none": 1.0, "f1,none": [1, 0]})]
    write_scores(tmp_path, {"t": samples}, ScoreFacts(leaves={"t": FACTS}))
    return tmp_path


def test_documents_read_back_in_order_with_a_column_for_each_metric(written):
    rows = read_samples(written).to_pylist()
    assert [row["doc_id"] for row in rows] == [0, 1]
    assert [row["acc,none"] for row in rows] == [1.0, None]
    assert [row["f1,none"] for row in rows] == ["[1, 0]", None]
    assert [row["error"] for row in rows] == [None, "ValueError: no"]
    assert read_samples(written, ["doc_id", "acc,none"]).column_names == ["doc_id", "acc,none"]


def test_how_they_were_asked_reads_back(written):
    assert read_leaf_facts(written) == {"t": FACTS}
    assert "Größe" in (written / TASK).read_text(encoding="utf-8")


def test_leaves_lie_one_after_the_other_and_a_column_is_json_where_one_has_no_numbers(tmp_path):
    def sample(doc_id, value):
        return Sample(doc_id=doc_id, doc_digest="d", prompt_digest="p", target="", metrics={"acc,none": value})

    samples = {"b": [sample(1, 0.0), sample(0, 1.0)], "a": [sample(0, [1, 2])]}
    write_scores(tmp_path, samples, ScoreFacts(leaves={"b": FACTS, "a": FACTS}))
    rows = read_samples(tmp_path, ["leaf", "doc_id", "acc,none"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [("b", 0, "1.0"), ("b", 1, "0.0"), ("a", 0, "[1, 2]")]


@pytest.mark.parametrize(("name", "read"), [(SAMPLES, read_samples), (TASK, read_leaf_facts)])
def test_a_damaged_shard_is_named(written, name, read):
    (written / name).write_text('{"task": "t"}')
    with pytest.raises(DataError, match=rf"^trial/t/0000: {name} cannot be read.*delete it and run again$"):
        read(written, artifact="trial/t/0000")
