"""The documents that a trial answers otherwise: which they are, in which order, and what was asked and said."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.compare.artifact import FLIPS_SCHEMA, read_flips
from stages.compare.config import CompareConfig
from stages.compare.stage import compare


@pytest.fixture
def flips(write_evaluation, tmp_path):
    def flips(trial, base, most=1000, columns=None, **settings):
        sides = {"trial/t": write_evaluation("t", trial, **settings), "base/t": write_evaluation("t", base, **settings)}
        for name, values in (columns or {}).items():
            for path in [path for role, path in sides.items() if role in values]:
                table = pq.read_table(path / "samples.parquet")
                role = next(role for role, own in sides.items() if own == path)
                column = pa.array(values[role], FLIPS_COLUMNS[name])
                table = table.set_column(table.column_names.index(name), name, column)
                pq.write_table(table, path / "samples.parquet")
        compare(CompareConfig(task="t", leaves=["t"]), sides, tmp_path)
        return read_flips(tmp_path, most)

    return flips


FLIPS_COLUMNS = {
    "choices": pa.list_(pa.string()),
    "loglikelihoods": pa.list_(pa.float64()),
    "responses": pa.list_(pa.string()),
    "filtered": pa.string(),
    "target": pa.string(),
}


def both(values):
    return {"trial/t": values, "base/t": values}


def test_every_document_whose_score_differs_is_there_and_no_other(flips):
    table, total = flips([1.0, 0.0, 1.0, 0.0] * 8, [1.0, 1.0, 0.0, 0.0] * 8)
    rows = {row["doc_id"]: row for row in table.to_pylist()}
    assert table.schema == FLIPS_SCHEMA and total == 16
    assert set(rows) == {doc for doc in range(32) if doc % 4 in (1, 2)}
    assert {row["change"] for doc, row in rows.items() if doc % 4 == 1} == {"lost"}
    assert {row["change"] for doc, row in rows.items() if doc % 4 == 2} == {"won"}
    assert (rows[1]["base_score"], rows[1]["trial_score"]) == (1.0, 0.0)
    assert (rows[1]["question"], rows[1]["target"], rows[1]["leaf"]) == ("question 1", "target 1", "t")


def test_where_lower_is_better_a_higher_score_is_lost(flips):
    lower = {"acc,none": {"aggregation": {"name": "mean"}, "higher_is_better": False}}
    table, _ = flips([2.0, 1.0, 3.0], [1.0, 1.0, 3.5], facts=lower)
    assert {row["doc_id"]: row["change"] for row in table.to_pylist()} == {0: "lost", 2: "won"}


def test_the_largest_changes_come_first_and_equal_ones_in_an_order_that_all_trials_share(flips):
    graded, _ = flips([0.5, 0.9, 0.2, 0.4], [0.6, 0.1, 0.2, 0.1])
    assert [row["doc_id"] for row in graded.to_pylist()] == [1, 3, 0]
    all_of_them, total = flips([0.0] * 400, [1.0] * 400)
    some, _ = flips([0.0] * 300 + [1.0] * 100, [1.0] * 400)
    order = [row["doc_id"] for row in all_of_them.to_pylist()]
    assert total == 400 and order != sorted(order)
    assert [row["doc_id"] for row in some.to_pylist()] == [doc for doc in order if doc < 300]


def test_the_first_are_read_without_the_rest_and_counted_with_it(flips):
    table, total = flips([0.0] * 500, [1.0] * 500, most=150)
    assert (table.num_rows, total) == (150, 500)


def test_of_choices_the_likeliest_is_the_answer_and_a_target_s_number_its_text(flips):
    choices = [["yes", "no, never"], ["yes", "no, never"]]
    worths = {"trial/t": [[-1.0, -2.0], [-3.0, -2.0]], "base/t": [[-3.0, -2.0], [-3.0, -2.0]]}
    table, _ = flips(
        [0.0, 1.0],
        [1.0, 1.0],
        columns={
            "choices": both(choices),
            "loglikelihoods": worths,
            "target": both(["1", "1"]),
        },
    )
    (row,) = table.to_pylist()
    assert (row["base_answers"], row["trial_answers"], row["target"]) == (["no, never"], ["yes"], "no, never")
    assert row["choices"] == choices[0]


def test_normalized_accuracy_takes_the_likeliest_by_its_length(flips):
    worths = both([[-1.0, -2.0]])
    table, _ = flips(
        {"acc_norm,none": [0.0]},
        {"acc_norm,none": [1.0]},
        columns={"choices": both([["yes", "no, never"]]), "loglikelihoods": worths},
    )
    assert table.to_pylist()[0]["trial_answers"] == ["no, never"]  # -2 / 9 is more than -1 / 3


def test_what_a_filter_made_of_an_answer_stands_beside_it(flips):
    said = {"trial/t": [["So it is 4."]], "base/t": [["5"]]}
    filtered = {"trial/t": [json.dumps({"none": "4", "other": "x"})], "base/t": [json.dumps({"none": "5"})]}
    table, _ = flips([0.0], [1.0], columns={"responses": said, "filtered": filtered})
    (row,) = table.to_pylist()
    assert (row["trial_answers"], row["trial_extracted"]) == (["So it is 4."], "4")
    assert (row["base_answers"], row["base_extracted"]) == (["5"], None)


def test_a_base_has_none(write_evaluation, tmp_path):
    compare(CompareConfig(task="t", leaves=["t"]), {"trial/t": write_evaluation("t", [1.0, 0.0])}, tmp_path)
    assert read_flips(tmp_path, 10) == (FLIPS_SCHEMA.empty_table(), 0)


def test_what_is_missing_on_one_side_is_no_flip(flips):
    table, _ = flips([None, 0.0, 1.0], [1.0, 1.0, None])
    assert [row["doc_id"] for row in table.to_pylist()] == [1]


def test_a_comparison_from_before_there_were_any_has_none(tmp_path):
    assert read_flips(tmp_path, 10) == (FLIPS_SCHEMA.empty_table(), 0)
