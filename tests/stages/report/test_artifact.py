"""What a report writes reads back, and every number of the comparison is in its summary."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.compare.artifact import SCHEMA
from stages.errors import DataError
from stages.report.artifact import (
    SERVING,
    SUMMARY,
    SUMMARY_DOCUMENT,
    SUMMARY_SCHEMA,
    SuiteMean,
    Summary,
    TrialVerdict,
    read_decisions,
    read_document,
    read_serving,
    read_suites,
    read_summary,
    write_serving,
    write_summary,
)

ROW = {"trial": "m/w8a8", "model": "m", "recipe": "w8a8", "is_base": False, "task": "arc", "status": "measured"}
MEAN = SuiteMean(
    trial="m/w8a8",
    suite="v1",
    normalized=False,
    mean=0.5,
    base_mean=None,
    recovery=None,
    recovery_low=None,
    recovery_high=None,
)
VERDICT = TrialVerdict(
    trial="m/w8a8", model="m", recipe="w8a8", is_base=False, decision="not decided", reasons=["arc: 128 documents"]
)
# What readers of reports have had so far, in this order.
COLUMNS = """
trial model recipe is_base size_gib task status metric higher_is_better aggregation n num_missing
num_truncated score score_low score_high interval base_score num_pairs paired_score paired_base_score recovery
recovery_low recovery_high difference difference_low difference_high num_base_only_right num_trial_only_right
mcnemar_p verdict normalized normalized_low normalized_high base_normalized paired_normalized
paired_base_normalized normalized_recovery normalized_recovery_low normalized_recovery_high
normalized_difference normalized_difference_low normalized_difference_high
"""


@pytest.fixture
def written(tmp_path):
    rows = [ROW | {"n": 128, "score": 0.5, "size_gib": 1.1}]
    write_summary(tmp_path, Summary(title="a sweep", rows=rows, suites=[MEAN], trials=[VERDICT]))
    return tmp_path


def test_the_summary_has_every_number_of_the_comparison_and_every_column_it_ever_had():
    assert set(SCHEMA.names) - {"leaf", "primary"} <= set(SUMMARY_SCHEMA.names)
    assert [name for name in SUMMARY_SCHEMA.names if name in COLUMNS.split()] == COLUMNS.split()
    assert all(SUMMARY_SCHEMA.field(name).type == SCHEMA.field(name).type for name in SCHEMA.names[4:])


def test_summary_and_suites_read_back(written):
    (row,) = read_summary(written).to_pylist()
    assert {name: value for name, value in row.items() if value is not None} == ROW | {
        "n": 128,
        "score": 0.5,
        "size_gib": 1.1,
    }
    (suite,) = read_suites(written).to_pylist()
    assert (suite["suite"], suite["mean"], suite["recovery"]) == ("v1", 0.5, None)
    assert read_document(written).trials == [VERDICT]


def test_a_report_from_before_suites_had_intervals_reads_back(written):
    suite = {"trial": "m/w8a8", "suite": "v1", "mean": 0.5, "base_mean": 0.6, "recovery": 5 / 6}
    (written / SUMMARY_DOCUMENT).write_text(json.dumps({"title": "a sweep", "rows": [], "suites": [suite]}))
    (row,) = read_suites(written).to_pylist()
    assert {name: value for name, value in row.items() if value is not None} == suite | {"normalized": False}
    assert read_document(written).trials == []
    assert read_decisions(written).num_rows == 0


def test_serving_reads_back_where_there_is_any(written):
    assert read_serving(written) is None
    write_serving(written, [{"trial": "m/w8a8", "workload": "rag", "is_valid": True, "reasons": []}])
    (row,) = read_serving(written).to_pylist()
    assert (row["workload"], row["is_valid"], row["latency_s_median"]) == ("rag", True, None)


def test_serving_of_a_report_from_before_starts_were_counted_reads_back(written):
    pq.write_table(pa.table({"trial": ["m/w8a8"], "requests_per_s": [4.0]}), written / SERVING)
    (row,) = read_serving(written).to_pylist()
    assert (row["requests_per_s"], row["num_starts"], row["itl_ms_p90_high"]) == (4.0, None, None)


def test_a_damaged_summary_is_named(written):
    (written / SUMMARY).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"summary.parquet cannot be read.*delete it and run again"):
        read_summary(written)
    (written / SUMMARY_DOCUMENT).write_text(json.dumps({"title": "a sweep", "rows": {}}))
    with pytest.raises(DataError, match=r"summary.json cannot be read.*delete it and run again"):
        read_suites(written)
