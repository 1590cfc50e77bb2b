"""The per-document results a comparison reads: shards put together, checked, and paired by document and prompt."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.errors import DataError
from stages.evaluate.artifact import TaskFacts, read_samples, read_task

Indices = NDArray[np.int64]

_KEY_COLUMNS = ["doc_id", "doc_digest", "prompt_digest", "truncated"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """All documents of one leaf task for one trial, ordered by document id, and how they were asked."""

    name: str
    documents: pa.Table
    facts: TaskFacts

    @property
    def num_truncated(self) -> int:
        """Documents whose prompt was cut on the left to fit the model."""
        return int(np.count_nonzero(self.documents["truncated"].to_numpy()))

    @property
    def settings(self) -> dict[str, Any]:
        """What must be equal for two numbers to be subtracted."""
        return _settings(self.facts)

    @property
    def arithmetic(self) -> Mapping[str, Any] | None:
        """Dense, native or simulated products, with their settings; None of results older than the field."""
        return self.facts.arithmetic


@dataclass(frozen=True, slots=True)
class Pairing:
    """Row numbers of the same document under the same prompt, and how many rows have no partner."""

    trial: Indices
    base: Indices
    num_unmatched: int
    num_base_unmatched: int
    num_prompt_differs: int  # unmatched documents that the base answered under another prompt


def read_leaves(role: str, leaves: Iterable[str], inputs: Mapping[str, Path]) -> dict[str, Leaf]:
    """The leaves of ``role`` (trial or base) that have at least one shard, from inputs ``<role>/<leaf>/<shard>``."""
    shards: dict[str, dict[str, Path]] = {leaf: {} for leaf in leaves}
    for name in sorted(inputs):
        if name.startswith(f"{role}/"):
            leaf, _, shard = name.removeprefix(f"{role}/").rpartition("/")
            if leaf not in shards:
                raise DataError(f"input {name} is of no leaf of this comparison; its leaves: {', '.join(shards)}")
            shards[leaf][shard] = inputs[name]
    return {leaf: _read_leaf(f"{role}/{leaf}", leaf, paths) for leaf, paths in shards.items() if paths}


def check_comparable(task: str, trial: Mapping[str, Leaf], base: Mapping[str, Leaf]) -> None:
    """Raise DataError naming each setting that differs between trial and base, with both values.

    A dense base is what every arithmetic is compared with; another one must be that of the trial.
    """
    for role, leaves in (("trial", trial), ("base", base)):
        _check_one_arithmetic(f"{task}: leaves of the {role}", {name: leaf.arithmetic for name, leaf in leaves.items()})
    for name in trial.keys() & base.keys():
        differences = _differences(trial[name].settings, base[name].settings, "trial", "base")
        if differences:
            label = task if name == task else f"{task}, {name}"
            raise DataError(f"{label}: trial and base are not comparable: {differences}; evaluate both alike")
        methods = [leaf.arithmetic and leaf.arithmetic["method"] for leaf in (trial[name], base[name])]
        if None not in methods and methods[1] not in ("dense", methods[0]):
            raise DataError(
                f"{task}: arithmetic is {methods[0]} in trial and {methods[1]} in base; use one engine for both"
            )


def pair(trial: pa.Table, base: pa.Table) -> Pairing:
    """Match rows by (doc_digest, prompt_digest); identical duplicates match in the order of their document ids."""
    trial_docs, base_docs = _codes(trial, base, "doc_digest")
    trial_prompts, base_prompts = _codes(trial, base, "prompt_digest")
    num_rows = trial.num_rows + base.num_rows
    _, trial_rows, base_rows = np.intersect1d(
        _numbered(trial_docs * num_rows + trial_prompts, num_rows),
        _numbered(base_docs * num_rows + base_prompts, num_rows),
        assume_unique=True,
        return_indices=True,
    )
    order = np.argsort(trial_rows)
    trial_rows, base_rows = trial_rows[order], base_rows[order]
    alone, base_alone = np.delete(trial_docs, trial_rows), np.delete(base_docs, base_rows)
    return Pairing(trial_rows, base_rows, len(alone), len(base_alone), int(np.isin(alone, base_alone).sum()))


def _read_leaf(label: str, name: str, shards: Mapping[str, Path]) -> Leaf:
    known = {shard: read_task(path, f"{label}/{shard}") for shard, path in shards.items()}
    first, facts = next(iter(known.items()))
    if facts.task != name:
        raise DataError(f"{label}/{first}: holds results of task {facts.task}, not of {name}")
    for shard, other in known.items():
        differences = _differences(_settings(facts), _settings(other), f"shard {first}", f"shard {shard}")
        if differences:
            raise DataError(f"{label}: shards disagree: {differences}; evaluate them alike")
    _check_one_arithmetic(label, {f"shard {shard}": other.arithmetic for shard, other in known.items()})
    columns = _KEY_COLUMNS + list(facts.metrics)
    tables = [read_samples(path, columns, f"{label}/{shard}") for shard, path in shards.items()]
    documents = pa.concat_tables(_of_one_type(tables)).sort_by("doc_id").combine_chunks()
    _check_no_duplicates(label, documents)
    return Leaf(name, documents, facts)


def _check_one_arithmetic(label: str, found: Mapping[str, Mapping[str, Any] | None]) -> None:
    """A native kernel on one machine and its simulation on another are not one measurement."""
    known = {name: arithmetic for name, arithmetic in found.items() if arithmetic is not None}
    first = next(iter(known), None)
    for name, arithmetic in known.items():
        differences = _differences(known[first or name], arithmetic, str(first), name)
        if differences:
            raise DataError(
                f"{label}: two arithmetics: {differences}; remove the artifacts of one of them from the store and "
                "evaluate them again on machines of the other's kind"
            )


def _of_one_type(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """A shard that could score none of its documents does not know whether their metric is a number or a list."""
    fields = [(table, field) for table in tables for field in table.schema]
    known = {field.name: field.type for table, field in fields if table[field.name].null_count < len(table)}
    return [
        table.cast(pa.schema([(field.name, known.get(field.name, field.type)) for field in table.schema]))
        for table in tables
    ]


def _settings(facts: TaskFacts) -> dict[str, Any]:
    metrics = {name: asdict(metric) for name, metric in facts.metrics.items()}
    return {**facts.comparable, "version": facts.version, "metrics": metrics}


def _check_no_duplicates(label: str, documents: pa.Table) -> None:
    doc_ids = documents["doc_id"].to_numpy()
    twice = doc_ids[1:][doc_ids[1:] == doc_ids[:-1]]
    if len(twice):
        raise DataError(f"{label}: document {twice[0]} is in two shards ({len(twice)} such); shards must not overlap")


def _differences(left: Mapping[str, Any], right: Mapping[str, Any], left_name: str, right_name: str) -> str:
    """``num_fewshot is 5 in the trial and 8 in the base``, one clause for each field; empty when all are equal."""
    clauses = []
    for field in sorted(left.keys() | right.keys()):
        values = [json.dumps(side.get(field), sort_keys=True) for side in (left, right)]
        if values[0] != values[1]:
            clauses.append(f"{field} is {values[0]} in {left_name} and {values[1]} in {right_name}")
    return "; ".join(clauses)


def _codes(trial: pa.Table, base: pa.Table, column: str) -> tuple[Indices, Indices]:
    """The strings of both sides as integers of one dictionary: 14,000 pairs of digests take 3 ms."""
    chunks = [chunk for side in (trial, base) for chunk in side[column].cast(pa.string()).chunks]
    both = pa.chunked_array(chunks, pa.string()).combine_chunks()
    codes = both.dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes[: trial.num_rows], codes[trial.num_rows :]


def _numbered(keys: Indices, num_rows: int) -> Indices:
    """Make equal keys distinct by their turn: the first of its kind, the second, ..."""
    order = np.argsort(keys, kind="stable")
    first_of_run = np.searchsorted(keys[order], keys[order])
    turns = np.empty_like(keys)
    turns[order] = np.arange(len(keys)) - first_of_run
    return keys * num_rows + turns
