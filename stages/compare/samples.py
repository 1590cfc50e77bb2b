"""The per-document results a comparison reads: put together by leaf, checked, and paired by document and prompt."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.errors import DataError
from stages.evaluate.artifact import MetricFacts, TaskFacts, read_leaf_facts, read_samples
from stages.evaluate.differences import check_one_arithmetic, differences

Indices = NDArray[np.int64]

_END_COLUMNS = ["truncated", "cut", "cut_in_thoughts", "stopped_by", "thinking"]
_KEY_COLUMNS = ["leaf", "doc_id", "doc_digest", "prompt_digest", *_END_COLUMNS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """How many documents had their prompts cut on the left, of how many the answers ended at the limit of tokens,
    inside of a model's thoughts, or at a stop string, and how many have thoughts before the answer.

    None of answers that are not written, and of stop strings where no chat template is applied: a chat model ends its
    turn by itself, any other model only there.  All are None where whoever answered does not tell.
    """

    num_truncated: int | None = 0
    num_cut: int | None = None
    num_cut_in_thoughts: int | None = None
    num_stopped: int | None = None
    num_thinking: int | None = None

    @property
    def columns(self) -> dict[str, int | None]:
        """By their names; ``asdict`` takes eight times as long."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Leaf:
    """All documents of one leaf task for one trial, ordered by document id, and how they were asked."""

    name: str
    documents: pa.Table
    facts: TaskFacts

    @property
    def ends(self) -> Ends:
        """How prompts and answers ended."""
        is_chat = bool(self.facts.comparable.get("apply_chat_template"))
        return Ends(
            num_truncated=self._count("truncated"),
            num_cut=self._count("cut"),
            num_cut_in_thoughts=self._count("cut_in_thoughts"),
            num_thinking=self._count("thinking"),
            num_stopped=None if self.is_cut is None or not is_chat else sum(map(bool, self._stop_strings())),
        )

    @property
    def is_cut(self) -> NDArray[np.bool_] | None:
        """Of each document whether an answer ended at the limit; None where nothing is written."""
        column = self.documents["cut"]
        return None if column.null_count == len(column) else column.fill_null(False).to_numpy()

    @property
    def stop_strings(self) -> Counter[str]:
        """Those that answers ended at, by documents."""
        return Counter(term for terms in self._stop_strings() for term in set(terms or ()))

    def _stop_strings(self) -> list[list[str] | None]:
        return list(self.documents["stopped_by"].to_pylist())

    def _count(self, column: str) -> int | None:
        values = self.documents[column]
        return None if values.null_count == len(values) else int(np.count_nonzero(values.fill_null(False).to_numpy()))

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


def read_leaves(role: str, leaves: Sequence[str], inputs: Mapping[str, Path]) -> dict[str, Leaf]:
    """The leaves of ``role`` (trial or base) that have scores, from inputs ``<role>/<part>``; a leaf may have parts in
    several.
    """
    parts: dict[str, dict[str, TaskFacts]] = {leaf: {} for leaf in leaves}
    tables: dict[str, list[pa.Table]] = {leaf: [] for leaf in leaves}
    for name in sorted(name for name in inputs if name.startswith(f"{role}/")):
        facts = read_leaf_facts(inputs[name], name)
        declared = ["cluster"] if any(each.cluster for each in facts.values()) else []
        metrics = dict.fromkeys(metric for each in facts.values() for metric in each.metrics)
        columns = [*_KEY_COLUMNS, *declared, *metrics]
        table = read_samples(inputs[name], columns, name)
        for leaf, known in facts.items():
            if leaf not in parts:
                raise DataError(f"{name}: holds results of task {leaf}, not of {' or '.join(leaves)}")
            parts[leaf][name] = known
            rows = table if len(facts) == 1 else table.filter(pc.field("leaf") == leaf)
            tables[leaf].append(rows.select([*_KEY_COLUMNS, *declared, *known.metrics]))
    return {leaf: _leaf(leaf, tables[leaf], known) for leaf, known in parts.items() if known}


def check_comparable(
    task: str, trial: Mapping[str, Leaf], base: Mapping[str, Leaf], sides: tuple[str, str] = ("trial", "base")
) -> None:
    """Raise DataError naming each setting that differs between trial and base, or other ``sides``, with both values.

    A dense base is what every arithmetic is compared with; another one must be that of the trial.
    """
    one, other = sides
    for role, leaves in ((one, trial), (other, base)):
        check_one_arithmetic(f"{task}: leaves of the {role}", {name: leaf.arithmetic for name, leaf in leaves.items()})
    for name in trial.keys() & base.keys():
        found = differences(trial[name].settings, base[name].settings, one, other)
        if found:
            label = task if name == task else f"{task}, {name}"
            raise DataError(f"{label}: {one} and {other} are not comparable: {found}; evaluate both alike")
        methods = [leaf.arithmetic and leaf.arithmetic["method"] for leaf in (trial[name], base[name])]
        if None not in methods and methods[1] not in ("dense", methods[0]):
            raise DataError(
                f"{task}: arithmetic is {methods[0]} in {one} and {methods[1]} in {other}; use one engine for both"
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


def clusters_of(leaves: Mapping[str, Leaf]) -> dict[str, Indices]:
    """Of each document a number that it shares with those it belongs to: of one declared cluster, or the same question,
    in whatever leaf.
    """
    names = [leaf.documents["cluster" if leaf.facts.cluster else "doc_digest"] for leaf in leaves.values()]
    chunks = [chunk for each in names for chunk in each.cast(pa.string()).chunks]
    codes = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode().indices
    bounds = np.cumsum([len(each) for each in names])[:-1]
    return dict(zip(leaves, np.split(codes.to_numpy().astype(np.int64), bounds), strict=True))


def _leaf(name: str, tables: Sequence[pa.Table], known: Mapping[str, TaskFacts]) -> Leaf:
    first, facts = next(iter(known.items()))
    for part, other in known.items():
        if found := differences(_settings(facts), _settings(other), first, part):
            raise DataError(f"{name}: {first} and {part} disagree: {found}; evaluate them alike")
    check_one_arithmetic(name, {part: other.arithmetic for part, other in known.items()})
    documents = pa.concat_tables(_of_one_type(tables)).sort_by("doc_id").combine_chunks()
    _check_no_duplicates(name, documents)
    return Leaf(name, documents, facts)


def _of_one_type(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """A shard that could score none of its documents does not know whether their metric is a number or a list."""
    fields = [(table, field) for table in tables for field in table.schema]
    known = {field.name: field.type for table, field in fields if table[field.name].null_count < len(table)}
    return [
        table.cast(pa.schema([(field.name, known.get(field.name, field.type)) for field in table.schema]))
        for table in tables
    ]


def _settings(facts: TaskFacts) -> dict[str, Any]:
    metrics = {name: _comparable(metric) for name, metric in facts.metrics.items()}
    return {**facts.comparable, "version": facts.version, "metrics": metrics}


def _comparable(metric: MetricFacts) -> dict[str, Any]:
    """Without its kind, which older results do not have."""
    return {name: value for name, value in asdict(metric).items() if name != "kind"}


def _check_no_duplicates(label: str, documents: pa.Table) -> None:
    doc_ids = documents["doc_id"].to_numpy()
    twice = doc_ids[1:][doc_ids[1:] == doc_ids[:-1]]
    if len(twice):
        raise DataError(
            f"{label}: document {twice[0]} is in two of its parts ({len(twice)} such); they must not overlap"
        )


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
