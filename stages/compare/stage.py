"""Compare a trial with its base on one task: score, recovery and paired difference, each with its interval."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.compare.aggregation import aggregation_label
from stages.compare.evidence import Evidence, combine, make_scorer, pairs_of_leaf, read_values, side_of_leaf
from stages.compare.normalization import check_baselines, normalize_leaf, normalize_task
from stages.compare.rows import NUMBERS, SCHEMA, draws_table, row
from stages.compare.samples import Leaf, Pairing, check_comparable, pair, read_leaves
from stages.errors import ConfigError, DataError
from stages.fields import execution, identity
from stages.statistics import generator

VERSION = 5

_LABELS = ("task", "leaf", "metric", "primary")


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """One task of one trial: a single lm-eval task, or a group that is a mean over several (``leaves``)."""

    task: str = identity()
    leaves: list[str] = identity()  # in the order of the rows
    metric: str | None = identity(None)  # the primary one, e.g. "exact_match,strict-match"; None: the task's first
    weight_by_size: bool = identity(True)  # a group's score: mean over documents, else plain mean of its leaves
    random_baseline: float | None = identity(None, neutral=None)  # what guessing scores in the primary metric
    leaf_baselines: dict[str, float] = identity(factory=dict, neutral={})  # or on each leaf; see compare_normalization
    confidence: float = identity(0.95)
    num_resamples: int = identity(10_000)
    seed: int = identity(0)
    num_expected: int | None = identity(None)  # documents over all leaves
    include_paths: list[str] = execution(factory=list)  # where a task's own aggregation functions are looked for

    def __post_init__(self) -> None:
        if not self.leaves or len(set(self.leaves)) != len(self.leaves):
            raise ValueError(f"{self.task}: leaves must name each leaf task once, got {list(self.leaves)}")
        check_baselines(self.task, self.random_baseline, self.leaf_baselines)
        if self.leaf_baselines and set(self.leaf_baselines) != set(self.leaves):
            raise ValueError(f"{self.task}: leaf_baselines must name every leaf and no other")
        if not 0 < self.confidence < 1:
            raise ValueError(f"{self.task}: confidence must lie between 0 and 1, got {self.confidence}")
        if self.num_resamples < 100:
            raise ValueError(f"{self.task}: num_resamples must be at least 100, got {self.num_resamples}")

    @property
    def is_normalized(self) -> bool:
        """Whether the primary metric is also shown relative to guessing."""
        return self.random_baseline is not None or bool(self.leaf_baselines)

    def baseline_of(self, leaf: str) -> float:
        """What guessing scores on one leaf."""
        return self.leaf_baselines.get(leaf, self.random_baseline or 0.0)


class _Line(NamedTuple):
    """A row with the evidence it was made from, raw and normalized."""

    row: dict[str, Any]
    raw: Evidence = Evidence()
    normalized: Evidence | None = None


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Everything read, checked and paired before the first number is computed."""

    config: CompareConfig
    trial: Mapping[str, Leaf]
    base: Mapping[str, Leaf]
    pairings: Mapping[str, Pairing]
    metrics: Mapping[str, Mapping[str, Any]]  # those every leaf reports, in the task's order; if there is none, all
    primary: str | None  # None where the leaves report different metrics, so that the task has no score


def compare(config: CompareConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``comparison.parquet`` (a row per leaf and metric, and for the whole task), ``comparison.json``, and
    ``draws.parquet`` (the whole task's paired bootstrap draws, from which a suite gets its interval).

    ``inputs`` are evaluate artifacts, ``trial/<leaf>/<shard>`` and ``base/<leaf>/<shard>``; a base trial has none of
    the latter.  A leaf without shards has no score, and neither has its group.  Returns the numbers of the whole
    task's primary metric.  Raises DataError if shards are damaged, overlap or fall short of ``num_expected``, or if
    trial and base are not comparable; ConfigError if the metric is not one of the task's.
    """
    comparison = _read(config, inputs)
    lines = [line for metric in comparison.metrics for line in _lines_of_metric(comparison, metric)]
    if comparison.primary is None:
        lines.append(_Line({"task": config.task, "leaf": None, "primary": True}))
    positions = {leaf: position for position, leaf in enumerate([*config.leaves, None])}
    lines.sort(key=lambda line: positions[line.row["leaf"]])
    rows = [line.row for line in lines]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out / "comparison.parquet", compression="zstd")
    headline = next(line for line in lines if line.row["leaf"] is None and line.row["primary"])
    pq.write_table(draws_table(headline.raw, headline.normalized), out / "draws.parquet", compression="zstd")
    document = _document(comparison, headline.row)
    (out / "comparison.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return {name: headline.row.get(name) for name in NUMBERS}


def _read(config: CompareConfig, inputs: Mapping[str, Path]) -> _Comparison:
    trial, base = (read_leaves(role, config.leaves, inputs) for role in ("trial", "base"))
    if not trial:
        raise DataError(f"{config.task}: no evaluation of the trial was given; name inputs trial/<leaf>/<shard>")
    _check_num_expected(config, trial)
    check_comparable(config.task, trial, base)
    common = _common_metrics(trial.values())
    primary = config.metric or next(iter(common), None)
    if primary is not None and primary not in common:
        known = ", ".join(common) or "none"
        raise ConfigError(f"{config.task}: metric {primary} is not one that all its leaves report; they report {known}")
    metrics = common or {name: facts for leaf in trial.values() for name, facts in _common_metrics([leaf]).items()}
    pairings = {name: pair(trial[name].documents, base[name].documents) for name in trial if name in base}
    return _Comparison(config, trial, base, pairings, metrics, primary)


def _check_num_expected(config: CompareConfig, trial: Mapping[str, Leaf]) -> None:
    num_documents = sum(leaf.documents.num_rows for leaf in trial.values())
    expected = config.num_expected
    is_whole = len(trial) == len(config.leaves)
    if expected is not None and (num_documents > expected or (is_whole and num_documents < expected)):
        raise DataError(f"{config.task}: {num_documents} documents instead of {expected}; a shard is missing or extra")


def _common_metrics(leaves: Iterable[Leaf]) -> dict[str, Mapping[str, Any]]:
    """lm-eval's ``bypass`` stands for "not scored here" and aggregates to a constant: it is no metric."""
    first, *others = (leaf.info["metrics"] for leaf in leaves)
    return {
        name: facts
        for name, facts in first.items()
        if facts["aggregation"].get("name") != "bypass" and all(name in other for other in others)
    }


def _lines_of_metric(comparison: _Comparison, metric: str) -> Iterator[_Line]:
    config, facts = comparison.config, comparison.metrics[metric]
    labels = {
        "task": config.task,
        "metric": metric,
        "primary": metric == comparison.primary,
        "higher_is_better": facts["higher_is_better"],
        "aggregation": aggregation_label(facts["aggregation"]),
    }
    lower_is_better = facts["higher_is_better"] is False
    if lower_is_better and labels["primary"] and config.is_normalized:
        raise ConfigError(
            f"{config.task}: lower is better in {metric}, so guessing cannot be its 0 of 100; drop random_baseline and "
            "leaf_baselines, or choose another metric"
        )
    if comparison.primary is None:
        for name in (name for name, leaf in comparison.trial.items() if metric in leaf.info["metrics"]):
            part = _evidence_of_leaf(comparison, name, metric)
            yield _Line({**labels, "leaf": name, **row(part, None, config.confidence, lower_is_better)}, part)
        return
    evidence = [_evidence_of_leaf(comparison, leaf, metric) for leaf in config.leaves]
    normalized: list[Evidence | None] = [None] * (len(evidence) + 1)
    if labels["primary"] and config.is_normalized:
        normalized = list(_normalized(config, evidence))
    whole = combine(evidence, config.weight_by_size)
    for leaf, raw, on_scale in zip([*config.leaves, None], [*evidence, whole], normalized, strict=True):
        numbers = row(raw, on_scale, config.confidence, lower_is_better)
        yield _Line({**labels, "leaf": leaf, **numbers}, raw, on_scale)


def _normalized(config: CompareConfig, evidence: Sequence[Evidence]) -> Iterator[Evidence]:
    """Of each leaf, then of the whole task."""
    baselines = [config.baseline_of(leaf) for leaf in config.leaves]
    yield from map(normalize_leaf, evidence, baselines)
    yield normalize_task(evidence, config.weight_by_size, config.random_baseline, baselines)


def _evidence_of_leaf(comparison: _Comparison, name: str, metric: str) -> Evidence:
    config = comparison.config
    if name not in comparison.trial:
        return Evidence()
    trial, base = comparison.trial[name], comparison.base.get(name)
    scorer = make_scorer(trial.info["metrics"][metric]["aggregation"], config.num_resamples, config.include_paths)
    score_rng, pairs_rng = (generator(config.seed, use, name, metric) for use in ("score", "pairs"))
    values = read_values(trial.documents, metric, scorer)
    side = side_of_leaf(values, scorer, trial.num_truncated, score_rng)
    if base is None:
        return Evidence(trial=side)
    base_values = read_values(base.documents, metric, scorer)
    return Evidence(
        trial=side,
        base=side_of_leaf(base_values, scorer, base.num_truncated),
        pairs=pairs_of_leaf(values, base_values, comparison.pairings[name], scorer, pairs_rng),
    )


def _document(comparison: _Comparison, headline: Mapping[str, Any]) -> dict[str, Any]:
    config = comparison.config
    return {
        "task": config.task,
        "metric": comparison.primary,
        "metrics": list(comparison.metrics),
        "weight_by_size": config.weight_by_size,
        "random_baseline": config.random_baseline,
        "leaf_baselines": config.leaf_baselines,
        "confidence": config.confidence,
        "num_resamples": config.num_resamples,
        "seed": config.seed,
        "headline": {name: headline.get(name) for name in SCHEMA.names if name not in _LABELS},
        "notes": list(_notes(comparison)),
        "leaves": {name: _facts(comparison.trial.get(name)) for name in config.leaves},
    }


def _facts(leaf: Leaf | None) -> dict[str, Any] | None:
    if leaf is None:
        return None
    facts = {name: leaf.info[name] for name in ("version", "num_docs", "comparable", "arithmetic")}
    return {"num_documents": leaf.documents.num_rows, **facts}


def _notes(comparison: _Comparison) -> Iterator[str]:
    """What a reader of the numbers must know, a line each."""
    for leaf in comparison.config.leaves:
        if leaf not in comparison.trial:
            yield f"{leaf}: no results, so {comparison.config.task} has no score"
        elif comparison.base and leaf not in comparison.base:
            yield f"{leaf}: no results of the base to compare with"
    if comparison.primary is None:
        yield f"the leaves of {comparison.config.task} report different metrics, so it has no score; each has its own"
    for leaf, pairing in comparison.pairings.items():
        if pairing.num_unmatched or pairing.num_base_unmatched:
            yield (
                f"{leaf}: {pairing.num_unmatched} documents of the trial and {pairing.num_base_unmatched} of the base "
                f"have no partner and are not compared; {pairing.num_prompt_differs} of them had a different prompt"
            )
