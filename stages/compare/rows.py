"""One row of a comparison: what the evidence on a metric amounts to, as numbers with their intervals."""

from dataclasses import asdict
from typing import Any

import pyarrow as pa

from stages.compare.artifact import NORMALIZED
from stages.compare.config import CompareConfig
from stages.compare.evidence import Evidence, Pairs, Side
from stages.compare.verdict import verdict_of
from stages.statistics import NO_INTERVAL, mcnemar_p, percentile_interval, recovery_draws, recovery_of


def row(
    evidence: Evidence, normalized: Evidence | None, config: CompareConfig, lower_is_better: bool
) -> dict[str, Any]:
    """The fields of Numbers from ``n`` on; absent or None is what could not be measured."""
    on_scale = _row(normalized, config, False) if normalized else {}
    found = _row(evidence, config, lower_is_better)
    return found | {name: on_scale.get(raw) for name, raw in NORMALIZED.items()}


def draws_table(raw: Evidence, normalized: Evidence | None) -> pa.Table:
    """Columns ``score``, ``base_score``, ``normalized``, ``base_normalized``: a resample a row; those there are."""
    columns = {}
    for name, evidence in (("score", raw), ("normalized", normalized)):
        if evidence is not None and evidence.pairs is not None and evidence.pairs.paired_draws is not None:
            columns[name], columns[f"base_{name}"] = evidence.pairs.paired_draws.astype("float32").T
    return pa.table({name: pa.array(draws) for name, draws in columns.items()})


def _row(evidence: Evidence, config: CompareConfig, lower_is_better: bool) -> dict[str, Any]:
    return {
        **_side_columns(evidence.trial, config.confidence),
        "num_resamples": _num_resamples(evidence),
        **(_base_columns(evidence.base) if evidence.base else {}),
        **(_pair_columns(evidence.pairs, config, lower_is_better) if evidence.pairs else {}),
    }


def _side_columns(side: Side, confidence: float) -> dict[str, Any]:
    low, high = side.interval(confidence)
    return {
        "n": side.n,
        "num_missing": side.num_missing,
        **asdict(side.ends),
        "score": side.score,
        "score_low": low,
        "score_high": high,
        "finished_score": side.finished_score,
        "interval": None if low is None else "bootstrap" if side.num_right is None else "wilson",
    }


def _base_columns(base: Side) -> dict[str, Any]:
    return {
        "base_n": base.n,
        "base_num_missing": base.num_missing,
        "base_num_cut": base.ends.num_cut,
        "base_num_cut_in_thoughts": base.ends.num_cut_in_thoughts,
        "base_num_stopped": base.ends.num_stopped,
        "base_num_thinking": base.ends.num_thinking,
        "base_score": base.score,
        "base_finished_score": base.finished_score,
    }


def _num_resamples(evidence: Evidence) -> int | None:
    draws = evidence.pairs.paired_draws if evidence.pairs else None
    draws = evidence.trial.draws if draws is None else draws
    return None if draws is None else len(draws)


def _pair_columns(pairs: Pairs, config: CompareConfig, lower_is_better: bool) -> dict[str, Any]:
    if pairs.trial_score is None or pairs.base_score is None or pairs.paired_draws is None:
        return {"num_pairs": pairs.n}
    difference = percentile_interval(pairs.paired_draws[:, 0] - pairs.paired_draws[:, 1], config.confidence)
    recovery = recovery_of(pairs.trial_score, pairs.base_score, lower_is_better)
    ratios = recovery_draws(pairs.paired_draws, lower_is_better)
    low, high = NO_INTERVAL if recovery is None else percentile_interval(ratios, config.confidence)
    p = None if pairs.discordant is None else mcnemar_p(*pairs.discordant)
    verdict = verdict_of(difference, p, lower_is_better, config)
    return {
        "num_pairs": pairs.n,
        "paired_score": pairs.trial_score,
        "paired_base_score": pairs.base_score,
        "recovery": recovery,
        "recovery_low": low,
        "recovery_high": high,
        "difference": pairs.trial_score - pairs.base_score,
        "difference_low": difference[0],
        "difference_high": difference[1],
        "num_base_only_right": pairs.discordant and pairs.discordant[0],
        "num_trial_only_right": pairs.discordant and pairs.discordant[1],
        "mcnemar_p": p,
        "verdict": verdict.word if verdict else None,
        "tone": verdict.tone if verdict else None,
    }
