"""What scoring writes: ``samples.parquet``, a row for each document of each leaf task, and ``task.json``, how they
were asked.

The same answers, scored, give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.documents import read_json, read_table, write_json, write_table
from stages.evaluate.digests import dumps

SAMPLES, TASK = "samples.parquet", "task.json"
RIGHT_OR_WRONG, GRADED, PASS_AT = "right_or_wrong", "graded", "pass_at"  # kinds of metrics

_COLUMNS = {
    "doc_id": pa.int32(),
    "doc_digest": pa.string(),
    "prompt_digest": pa.string(),
    "question": pa.string(),
    "choices": pa.list_(pa.string()),
    "target": pa.string(),
    "responses": pa.list_(pa.string()),
    "thoughts": pa.list_(pa.string()),
    "filtered": pa.string(),
}
_LAST_COLUMNS = {
    "loglikelihoods": pa.list_(pa.float64()),
    "num_prompt_tokens": pa.int32(),
    "num_output_tokens": pa.int32(),
    "finish_reason": pa.string(),
    "cut": pa.bool_(),
    "cut_in_thoughts": pa.bool_(),
    "stopped_by": pa.list_(pa.string()),
    "thinking": pa.bool_(),
    "truncated": pa.bool_(),
    "error": pa.string(),
    "cluster": pa.string(),
}


@dataclass(slots=True, kw_only=True)
class Sample:
    """One document; ``metrics`` by ``<metric>,<filter>``, empty where ``error`` says why.

    ``question`` is the document as its task puts it, without examples and template, and ``choices`` what it may be
    answered with, None where anything may.
    ``cut``: an answer ended at the limit of its tokens, None where nothing is written; ``stopped_by``: the stop
    strings that answers ended at; ``thinking``: an answer has thoughts, None where none are looked for;
    ``truncated``: its prompt was cut on the left. Tokens and cuts are None where nobody tells.
    """

    doc_id: int
    doc_digest: str
    prompt_digest: str
    target: str
    question: str = ""
    choices: list[str] | None = None
    responses: list[str] = field(default_factory=list)
    thoughts: list[str | None] | None = None
    filtered: str = "{}"
    metrics: dict[str, Any] = field(default_factory=dict)
    loglikelihoods: list[float] | None = None
    num_prompt_tokens: int | None = 0
    num_output_tokens: int | None = 0
    finish_reason: str | None = None
    cut: bool | None = None
    cut_in_thoughts: bool | None = None
    stopped_by: list[str] = field(default_factory=list)
    thinking: bool | None = None
    truncated: bool | None = False
    error: str | None = None
    cluster: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricFacts:
    """How values become a score: by lm-eval's aggregation of a ``name``, or the ``function`` in a task's ``file``.

    ``kind``: right_or_wrong where each document is 1 or 0, pass_at where it is the chance that one of several answers
    is right, else graded; None of results older than the field.
    """

    aggregation: dict[str, str]
    higher_is_better: bool | None
    kind: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """How a task was asked; ``num_docs`` are those of the whole, ``metrics`` by ``<metric>,<filter>`` in its order.

    ``comparable`` is what must be equal for two numbers to be subtracted, ``scoring`` how an engine scores, and
    ``arithmetic`` what it multiplied with (None of results older than the field).  ``cluster`` is the field of
    documents whose equal values belong together; the samples have its digests then.
    """

    task: str
    version: Any
    output_type: str
    num_docs: int
    metrics: dict[str, MetricFacts]
    scoring: dict[str, str] = field(default_factory=dict)
    arithmetic: dict[str, Any] | None = None
    cluster: str | None = None
    comparable: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreFacts:
    """Of each leaf task how it was asked."""

    leaves: dict[str, TaskFacts]


def write_scores(out: Path, scored: Mapping[str, Sequence[Sample]], facts: ScoreFacts) -> None:
    """Samples by leaf in its order, each sorted by document, with one column for each metric: numbers, or JSON where
    one is none.
    """
    rows = [(leaf, row) for leaf, samples in scored.items() for row in sorted(samples, key=lambda each: each.doc_id)]
    metrics = dict.fromkeys(name for each in facts.leaves.values() for name in each.metrics)
    columns = {"leaf": pa.array([leaf for leaf, _ in rows], pa.string())}
    columns |= {name: pa.array([getattr(row, name) for _, row in rows], kind) for name, kind in _COLUMNS.items()}
    columns |= {name: _metric_column([row.metrics.get(name) for _, row in rows]) for name in metrics}
    columns |= {name: pa.array([getattr(row, name) for _, row in rows], kind) for name, kind in _LAST_COLUMNS.items()}
    write_table(out / SAMPLES, pa.table(columns))
    write_json(out / TASK, asdict(facts), ascii_only=False)


def read_samples(directory: Path, columns: Sequence[str] | None = None, artifact: str | None = None) -> pa.Table:
    """A row for each document, with its ``leaf``; errors name ``artifact``, by default the directory."""
    return read_table(directory / SAMPLES, columns, artifact)


def read_leaf_facts(directory: Path, artifact: str | None = None) -> dict[str, TaskFacts]:
    """How each leaf task was asked; errors name ``artifact``, by default the directory."""
    return read_json(directory / TASK, ScoreFacts, artifact).leaves


def _metric_column(values: list[Any]) -> pa.Array:
    numbers = [_number(value) for value in values]
    if all(number is not None or value is None for number, value in zip(numbers, values, strict=True)):
        return pa.array(numbers, pa.float64())
    return pa.array([None if value is None else dumps(value) for value in values], pa.string())


def _number(value: Any) -> float | None:
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    return float(value) if isinstance(value, bool | int | float) else None
