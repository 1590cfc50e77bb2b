"""Compare a trial with its base on one task: score, recovery and paired difference, each with its interval."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from stages.compare.aggregation import aggregation_label
from stages.compare.artifact import NUMBERS, ComparisonFacts, LeafFacts, Numbers, write_comparison
from stages.compare.config import CompareConfig
from stages.compare.evidence import Evidence, combine, make_scorer, pairs_of_leaf, read_values, side_of_leaf
from stages.compare.normalization import normalize_leaf, normalize_task
from stages.compare.rows import draws_table, row
from stages.compare.samples import Leaf, Pairing, check_comparable, pair, read_leaves
from stages.compare.verdict import explained
from stages.errors import ConfigError, DataError
from stages.evaluate.artifact import MetricFacts
from stages.statistics import generator

VERSION = 7
MOST_COMMON = 3


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
    metrics: Mapping[str, MetricFacts]  # those every leaf reports, in the task's order; if there is none, all
    primary: str | None  # None where the leaves report different metrics, so that the task has no score


def compare(config: CompareConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``comparison.parquet`` (a row per leaf and metric, and for the whole task), ``comparison.json``, and
    ``draws.parquet`` (the whole task's paired bootstrap draws, from which a suite gets its interval).

    ``inputs`` are scores, ``trial/<part>`` and ``base/<part>``; a base trial has none of the latter.  A leaf without
    any has no score, and neither has its group.  Returns the numbers of the whole
    task's primary metric.  Raises DataError if they are damaged, overlap or fall short of ``num_expected``, or if
    trial and base are not comparable; ConfigError if the metric is not one of the task's.
    """
    comparison = _read(config, inputs)
    lines = [line for metric in comparison.metrics for line in _lines_of_metric(comparison, metric)]
    if comparison.primary is None:
        lines.append(_Line({"task": config.task, "leaf": None, "primary": True}))
    positions = {leaf: position for position, leaf in enumerate([*config.leaves, None])}
    lines.sort(key=lambda line: positions[line.row["leaf"]])
    headline = next(line for line in lines if line.row["leaf"] is None and line.row["primary"])
    draws = draws_table(headline.raw, headline.normalized)
    write_comparison(out, [line.row for line in lines], draws, _facts(comparison, headline.row))
    return {name: headline.row.get(name) for name in NUMBERS}


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
    return _Comparison(config, trial, base, pairings, metrics, primary)


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
            part = _evidence_of_leaf(comparison, name, metric)
            yield _Line({**labels, "leaf": name, **row(part, None, config, lower_is_better)}, part)
        return
    evidence = [_evidence_of_leaf(comparison, leaf, metric) for leaf in config.leaves]
    normalized: list[Evidence | None] = [None] * (len(evidence) + 1)
    if labels["primary"] and config.is_normalized:
        normalized = list(_normalized(config, evidence))
    whole = combine(evidence, config.weight_by_size)
    for leaf, raw, on_scale in zip([*config.leaves, None], [*evidence, whole], normalized, strict=True):
        numbers = row(raw, on_scale, config, lower_is_better)
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
    scorer = make_scorer(trial.facts.metrics[metric].aggregation, config.num_resamples, config.include_paths)
    score_rng, pairs_rng = (generator(config.seed, use, name, metric) for use in ("score", "pairs"))
    values = read_values(trial.documents, metric, scorer)
    side = side_of_leaf(values, scorer, trial, score_rng)
    if base is None:
        return Evidence(trial=side)
    base_values = read_values(base.documents, metric, scorer)
    return Evidence(
        trial=side,
        base=side_of_leaf(base_values, scorer, base),
        pairs=pairs_of_leaf(values, base_values, comparison.pairings[name], scorer, pairs_rng),
    )


def _facts(comparison: _Comparison, headline: Mapping[str, Any]) -> ComparisonFacts:
    config = comparison.config
    return ComparisonFacts(
        task=config.task,
        metric=comparison.primary,
        metrics=list(comparison.metrics),
        weight_by_size=config.weight_by_size,
        random_baseline=config.random_baseline,
        leaf_baselines=config.leaf_baselines,
        confidence=config.confidence,
        num_resamples=config.num_resamples,
        seed=config.seed,
        headline=Numbers(**{field.name: headline.get(field.name) for field in fields(Numbers)}),
        verdict_rule=explained(config),
        notes=list(_notes(comparison)),
        leaves={name: _leaf_facts(comparison.trial.get(name)) for name in config.leaves},
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
