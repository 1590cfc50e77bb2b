"""``samples.parquet``: one row per document, the same bytes whenever the same answers are scored."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.evaluate.scoring import Sample, dumps

_COLUMNS = {
    "doc_id": pa.int32(),
    "doc_digest": pa.string(),
    "prompt_digest": pa.string(),
    "target": pa.string(),
    "responses": pa.list_(pa.string()),
    "filtered": pa.string(),
}
_LAST_COLUMNS = {
    "loglikelihoods": pa.list_(pa.float64()),
    "num_prompt_tokens": pa.int32(),
    "num_output_tokens": pa.int32(),
    "finish_reason": pa.string(),
    "truncated": pa.bool_(),
    "error": pa.string(),
}


def write_samples(path: Path, samples: Sequence[Sample], metrics: Sequence[str]) -> None:
    """Write ``samples`` sorted by document, with one column for each of ``metrics``: numbers, or JSON where not."""
    rows = sorted(samples, key=lambda sample: sample.doc_id)
    columns = {name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in _COLUMNS.items()}
    columns |= {name: _metric_column([row.metrics.get(name) for row in rows]) for name in metrics}
    columns |= {name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in _LAST_COLUMNS.items()}
    pq.write_table(pa.table(columns), path, compression="zstd")


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with keys in the order given."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _metric_column(values: list[Any]) -> pa.Array:
    numbers = [_number(value) for value in values]
    if all(number is not None or value is None for number, value in zip(numbers, values, strict=True)):
        return pa.array(numbers, pa.float64())
    return pa.array([None if value is None else dumps(value) for value in values], pa.string())


def _number(value: Any) -> float | None:
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    return float(value) if isinstance(value, bool | int | float) else None
