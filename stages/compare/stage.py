"""Compare a trial with its base on one task: score, recovery and paired difference, each with its interval."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from stages.compare.aggregation import aggregation_label
from stages.compare.artifact import NUMBERS, ComparisonFacts, Errors, LeafFacts, Numbers, write_comparison, write_flips
from stages.compare.asked import Ask, asked_of, runs_of
from stages.compare.config import CompareConfig
from stages.compare.evidence import Evidence, make_scorer, pairs_of_leaf, read_values, side_of_leaf
from stages.compare.flips import flips_of
from stages.compare.influences import influence_table
from stages.compare.reruns import Rerun, changes_between_runs, excess_of_changes, read_reruns
from stages.compare.rows import error_of, rows
from stages.compare.samples import Indices, Leaf, Pairing, check_comparable, clusters_of, pair, read_leaves
from stages.compare.verdict import explained
from stages.compare.whole import RAW, compared
from stages.errors import ConfigError, DataError
from stages.evaluate.artifact import MetricFacts

VERSION = 10
MOST_COMMON = 3


class _Line(NamedTuple):
    """A row, and what it was made from."""

    row: dict[str, Any]
    ask: Ask | None = None
    influences: pa.Table | None = None


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Everything read, checked and paired before the first number is computed."""

    config: CompareConfig
    trial: Mapping[str, Leaf]
    base: Mapping[str, Leaf]
    pairings: Mapping[str, Pairing]
    reruns: Sequence[Rerun]  # of the trial
    base_reruns: Sequence[Rerun]
    clusters: Mapping[str, Indices]  # of each of the trial's documents the one it belongs to
    base_clusters: Mapping[str, Indices]
    metrics: Mapping[str, MetricFacts]  # those every leaf reports, in the task's order; if there is none, all
    primary: str | None  # None where the leaves report different metrics, so that the task has no score


def compare(config: CompareConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``comparison.parquet`` (a row per leaf and metric, and for the whole task), ``comparison.json`` (with
    the errors of the whole task's numbers, from which a suite gets its interval) and ``flips.parquet`` (the documents
    that the trial answers otherwise).

    ``inputs`` are scores, ``trial/<part>`` and ``base/<part>``, and of what was evaluated again
    ``trial_rerun/<number>/<part>`` and ``base_rerun/<number>/<part>``; a base trial has none of the base.  A leaf
    without any has no score, and neither has its group.  Returns the numbers of the whole task's primary metric.
    Raises DataError if they are damaged, overlap or fall short of ``num_expected``, or if trial and base are not
    comparable; ConfigError if the metric is not one of the task's.
    """
    comparison = _read(config, inputs)
    lines = [line for metric in comparison.metrics for line in _lines_of_metric(comparison, metric)]
    if comparison.primary is None:
        lines.append(_Line({"task": config.task, "leaf": None, "primary": True}))
    positions = {leaf: position for position, leaf in enumerate([*config.leaves, None])}
    lines.sort(key=lambda line: positions[line.row["leaf"]])
    headline = next(line for line in lines if line.row["leaf"] is None and line.row["primary"])
    write_comparison(out, [line.row for line in lines], _facts(comparison, headline), headline.influences)
    _write_flips(comparison, inputs, out)
    return {name: headline.row.get(name) for name in NUMBERS}


def _write_flips(comparison: _Comparison, inputs: Mapping[str, Path], out: Path) -> None:
    metric, leaves = comparison.primary, (comparison.trial, comparison.base)
    lower_is_better = metric is not None and comparison.metrics[metric].higher_is_better is False
    write_flips(out, flips_of(metric, lower_is_better, *leaves, comparison.pairings, inputs))


def _read(config: CompareConfig, inputs: Mapping[str, Path]) -> _Comparison:
    trial, base = (read_leaves(role, config.leaves, inputs) for role in ("trial", "base"))
    if not trial:
        raise DataError(f"{config.task}: no evaluation of the trial was given; name inputs trial/<part>")
    _check_num_expected(config, trial)
    check_comparable(config.task, trial, base)
    common = _common_metrics([_reported(leaf) for leaf in trial.values()])
    primary = config.metric or next(iter(common), None)
    if primary is not None and primary not in common:
        known = ", ".join(common) or "none"
        raise ConfigError(f"{config.task}: metric {primary} is not one that all its leaves report; they report {known}")
    each = (_common_metrics([_reported(leaf)]) for leaf in trial.values())
    metrics = common or {name: facts for of_leaf in each for name, facts in of_leaf.items()}
    pairings = {name: pair(trial[name].documents, base[name].documents) for name in trial if name in base}
    reruns, base_reruns = (
        read_reruns(side, config.task, config.leaves, inputs, first)
        for side, first in (("trial", trial), ("base", base))
    )
    return _Comparison(
        config=config,
        trial=trial,
        base=base,
        pairings=pairings,
        reruns=reruns,
        base_reruns=base_reruns,
        clusters=clusters_of(trial),
        base_clusters=clusters_of(base) if base else {},
        metrics=metrics,
        primary=primary,
    )


def _check_num_expected(config: CompareConfig, trial: Mapping[str, Leaf]) -> None:
    num_documents = sum(leaf.documents.num_rows for leaf in trial.values())
    expected = config.num_expected
    is_whole = len(trial) == len(config.leaves)
    if expected is not None and (num_documents > expected or (is_whole and num_documents < expected)):
        raise DataError(f"{config.task}: {num_documents} documents instead of {expected}; some are missing or extra")


def _reported(leaf: Leaf) -> Mapping[str, MetricFacts]:
    """The metrics that some document has: a task's code may report others than the task lists; all, if none has any."""
    documents, metrics = leaf.documents, leaf.facts.metrics
    found = {name: facts for name, facts in metrics.items() if documents[name].null_count < documents.num_rows}
    return found or metrics


def _common_metrics(leaves: Iterable[Mapping[str, MetricFacts]]) -> dict[str, MetricFacts]:
    """lm-eval's ``bypass`` stands for "not scored here" and aggregates to a constant: it is no metric."""
    first, *others = leaves
    return {
        name: facts
        for name, facts in first.items()
        if facts.aggregation.get("name") != "bypass" and all(name in other for other in others)
    }


def _lines_of_metric(comparison: _Comparison, metric: str) -> Iterator[_Line]:
    config, facts = comparison.config, comparison.metrics[metric]
    labels = {
        "task": config.task,
        "metric": metric,
        "primary": metric == comparison.primary,
        "higher_is_better": facts.higher_is_better,
        "aggregation": aggregation_label(facts.aggregation),
    }
    lower_is_better = facts.higher_is_better is False
    if lower_is_better and labels["primary"] and config.is_normalized:
        raise ConfigError(
            f"{config.task}: lower is better in {metric}, so guessing cannot be its 0 of 100; drop random_baseline and "
            "leaf_baselines, or choose another metric"
        )
    if comparison.primary is None:
        for name in (name for name, leaf in comparison.trial.items() if metric in leaf.facts.metrics):
            evidence = [_evidence_of_leaf(comparison, name, metric)]
            ask = Ask(raw=compared(evidence, True, [RAW]), runs=runs_of(evidence, True, [RAW]))
            yield _Line({**labels, "leaf": name, **rows([ask], config, lower_is_better)[0]}, ask)
        return
    evidence = [_evidence_of_leaf(comparison, leaf, metric) for leaf in config.leaves]
    asked = list(asked_of(config, evidence, is_normalized=bool(labels["primary"]) and config.is_normalized))
    numbers = rows(asked, config, lower_is_better)
    influences = influence_table(config, comparison.trial, comparison.clusters, evidence) if labels["primary"] else None
    for leaf, ask, each in zip([*config.leaves, None], asked, numbers, strict=True):
        yield _Line({**labels, "leaf": leaf, **each}, ask, influences)


def _evidence_of_leaf(comparison: _Comparison, name: str, metric: str) -> Evidence:
    config = comparison.config
    if name not in comparison.trial:
        return Evidence()
    trial, base = comparison.trial[name], comparison.base.get(name)
    facts, clusters = trial.facts.metrics[metric], comparison.clusters[name]
    kinds = [leaf.facts.metrics[metric].kind for leaf in (trial, base) if leaf is not None]
    scorer = make_scorer(facts.aggregation, kinds, facts.higher_is_better is False, config.include_paths)
    values = read_values(trial.documents, metric, scorer)
    side = side_of_leaf(values, scorer, trial, clusters)
    rerun = changes_between_runs(name, metric, values, comparison.reruns, scorer, clusters)
    if base is None:
        return Evidence(trial=side, rerun=rerun)
    base_values, again = read_values(base.documents, metric, scorer), comparison.base_reruns
    pairing, base_clusters = comparison.pairings[name], comparison.base_clusters[name]
    pairs = pairs_of_leaf(values, base_values, pairing, scorer, clusters)
    excess = None
    if pairs.part is not None and pairs.part.is_right_or_wrong:  # what is graded changes with the last bits of a sum
        excess = excess_of_changes(name, metric, (values, base_values), pairing, again, scorer, clusters)
    return Evidence(
        trial=side,
        base=side_of_leaf(base_values, scorer, base),
        pairs=pairs,
        rerun=rerun,
        base_rerun=changes_between_runs(name, metric, base_values, again, scorer, base_clusters),
        excess=excess,
    )


def _facts(comparison: _Comparison, line: _Line) -> ComparisonFacts:
    config, headline = comparison.config, line.row
    return ComparisonFacts(
        task=config.task,
        metric=comparison.primary,
        metrics=list(comparison.metrics),
        weight_by_size=config.weight_by_size,
        random_baseline=config.random_baseline,
        leaf_baselines=config.leaf_baselines,
        confidence=config.confidence,
        headline=Numbers(**{field.name: headline.get(field.name) for field in fields(Numbers)}),
        verdict_rule=explained(config),
        errors=_errors(line, config.confidence),
        notes=list(_notes(comparison)),
        leaves={name: _leaf_facts(comparison.trial.get(name)) for name in config.leaves},
    )


def _errors(line: _Line, confidence: float) -> Errors:
    if line.ask is None:
        return Errors()
    lower_is_better = line.row["higher_is_better"] is False
    return Errors(
        raw=error_of(line.ask.raw, line.row, "", confidence, lower_is_better),
        normalized=error_of(line.ask.normalized, line.row, "normalized_", confidence, lower_is_better),
    )


def _leaf_facts(leaf: Leaf | None) -> LeafFacts | None:
    if leaf is None:
        return None
    asked = leaf.facts
    return LeafFacts(
        num_documents=leaf.documents.num_rows,
        version=asked.version,
        num_docs=asked.num_docs,
        comparable=asked.comparable,
        arithmetic=asked.arithmetic,
    )


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
    for side, leaves in (("", comparison.trial), ("of the base ", comparison.base)):
        for name, answered in leaves.items():
            if stopped := answered.stop_strings:
                found = ", ".join(f"{term!r} {number}" for term, number in stopped.most_common(MOST_COMMON))
                yield f"{name}: answers {side}that ended at a stop string: {found}"
