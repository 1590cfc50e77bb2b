"""What serving costs, as a report shows it: latency and throughput with queries per dollar, advice, and every doubt."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from stages.measured import ONCE, Replicated, measured
from stages.report.artifact import Row
from stages.report.config import ServingConfig, SloConfig, TrialRow
from stages.report.numbers import MISSING, number
from stages.report.serving.chart import bar_chart, curve_chart
from stages.report.serving.goodput import goodput_of
from stages.report.serving.points import point_lines, point_rows, why_lines
from stages.report.serving.recommendation import Recommendation, recommend
from stages.report.serving.results import (
    Point,
    Served,
    base_of,
    curve_of,
    mixes_of,
    option_of,
    read_served,
    reduction_of,
    speedup_of,
    workloads_of,
)
from stages.serving.artifact import read_ceilings

FIRST_TOKENS = (64, 1024)  # prompts whose time to the first token the summary shows
INVALID = "†"


def serving_view(
    trials: Sequence[TrialRow],
    serving: ServingConfig,
    inputs: Mapping[str, Path],
    rows: Sequence[Row],
    confidence: float,
) -> dict[str, Any]:
    """Everything the templates show of serving: prices, and a section for each model and GPU.

    ``confidence`` is that of the rows' intervals.
    """
    served = [each for each in read_served(trials, serving, inputs) if each.points]
    keyed = groupby(sorted(served, key=_place), key=_place)
    sections = [_section(list(group), serving, inputs, rows, confidence) for _, group in keyed]
    return {"prices": [_price(gpu) for gpu in serving.gpus], "sections": sections, "invalid": INVALID}


def serving_points(
    trials: Sequence[TrialRow], serving: ServingConfig, inputs: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """Every point as a row of numbers, by the columns of SERVING_SCHEMA."""
    served = read_served(trials, serving, inputs)
    return [row for each in served for row in point_rows(each, _ceilings(each, inputs))]


def significant(value: float | None, digits: int = 3) -> str:
    """With so many significant digits, thousands separated."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


def _place(served: Served) -> tuple[str, str]:
    return served.trial.model, served.gpu.name


def _section(
    served: Sequence[Served],
    serving: ServingConfig,
    inputs: Mapping[str, Path],
    rows: Sequence[Row],
    confidence: float,
) -> dict[str, Any]:
    workloads, recipes = workloads_of(served), [each.trial.label for each in served]
    options = [option_of(each, rows, confidence) for each in served]
    mixes = mixes_of(serving, served)
    model, gpu = _place(served[0])
    ceilings = {each.trial.name: _ceilings(each, inputs) for each in served}
    return {
        "title": f"{model} on {_device(served[0])}",
        "name": f"{model}-{gpu}",
        "workloads": [{"name": name, "shape": _shape(name, served)} for name in workloads],
        "summary": [_summary_line(each, served, rows, next(iter(mixes.values()))) for each in served],
        "tasks": list(dict.fromkeys(row["task"] for row in rows if row["model"] == model)),
        "latency": [_line(each, served, workloads, "synchronous") for each in served],
        "throughput": [_line(each, served, workloads, "throughput") for each in served],
        "advice": [_advice(name, recommend(options, mix)) for name, mix in mixes.items()],
        "goodput": _goodput(served, workloads, serving),
        "points": [line for each in served for line in point_lines(each, ceilings[each.trial.name])],
        "why": [why_lines(each) for each in served],
        "charts": _charts(model, served, workloads, recipes),
    }


def _line(served: Served, everything: Sequence[Served], workloads: Sequence[str], mode: str) -> dict[str, Any]:
    """A row of the latency or throughput table: the ratio to the base, then each workload."""
    base, is_sync = base_of(served, everything), mode == "synchronous"
    ratio = reduction_of(served, base) if is_sync else speedup_of(served, base)
    points = {point.workload: point for point in served.points if point.mode == mode}
    per_usd = served.sync_queries_per_usd if is_sync else served.async_queries_per_usd
    of_base = per_usd if base is None else base.sync_queries_per_usd if is_sync else base.async_queries_per_usd
    num_shared = len(per_usd.keys() & of_base.keys())
    return {
        "recipe": served.trial.label,
        "gpus": max(point.facts.num_gpus for point in served.points) or MISSING,
        "ratio": "base" if base is served else number(ratio.value if ratio else None, 2),
        "interval": _interval(ratio),
        "of": "" if num_shared == len(workloads) else f"{num_shared} of {len(workloads)} workloads",
        "cells": [_cell(points.get(name), per_usd.get(name), is_sync) for name in workloads],
    }


def _cell(point: Point | None, per_usd: Replicated | None, is_sync: bool) -> dict[str, str]:
    if point is None:
        return {"value": MISSING, "per_usd": ""}
    value = point.latency_s if is_sync else point.rate
    return {
        "value": significant(value) + ("" if point.is_valid else f" {INVALID}"),
        "per_usd": f"({significant(per_usd.value)})" if per_usd else "",
    }


def _summary_line(
    served: Served, everything: Sequence[Served], rows: Sequence[Row], mix: Mapping[str, float]
) -> dict[str, Any]:
    """One row for a format: how soon it begins, how much it writes for a dollar, and how well."""
    tokens_per_s = _tokens_per_s(served, mix)
    scores = {row["task"]: row for row in rows if row["trial"] == served.trial.name}
    return {
        "recipe": served.trial.label,
        "ttft": [_first_token(served, length) for length in FIRST_TOKENS],
        "tokens_per_s": significant(tokens_per_s),
        "tokens_per_usd": significant(None if tokens_per_s is None else tokens_per_s * 3600 / served.hourly_usd),
        "scores": {task: number(row["score"], 4) for task, row in scores.items()},
        "size": significant(served.trial.size_gib),
    }


def _tokens_per_s(served: Served, mix: Mapping[str, float]) -> float | None:
    """Generated tokens a second at saturation, of queries drawn from the mix; None if one of them is not measured."""
    rates = served.requests_per_s
    if not mix.keys() <= rates.keys():
        return None
    tokens = {point.workload: point.facts.output_tokens for point in served.points}
    spent_s = sum(share / rates[name].value for name, share in mix.items())
    return float(sum(share * tokens[name] for name, share in mix.items()) / spent_s)


def _first_token(served: Served, prompt_tokens: int) -> str:
    points = [p for p in served.valid("synchronous").values() if p.facts.prompt_tokens == prompt_tokens]
    found = points[0].over_starts(lambda facts: facts.ttft_ms.median) if points else None
    return significant(None if found is None else found.value)


def _advice(mix: str, found: Recommendation) -> dict[str, Any]:
    flips = [
        f"{flip.workload}: {flip.below} below {significant(flip.low_rate)} requests/s, {flip.above} above "
        f"{significant(flip.high_rate)}"
        for flip in found.flips
    ]
    flips += [f"{workload}: {ONCE}, no verdict" for workload in found.untested]
    return {
        "mix": mix,
        "synchronous": found.synchronous.text,
        "asynchronous": found.asynchronous.text,
        "flips": flips or ["none is shown between the measured rates"],
        "unbeaten": found.unbeaten.text,
    }


def _goodput(served: Sequence[Served], workloads: Sequence[str], serving: ServingConfig) -> dict[str, Any] | None:
    limits = {"ms between tokens": serving.slo.itl_ms, "ms to the first token": serving.slo.ttft_ms}
    asked = [f"{limit:g} {name}" for name, limit in limits.items() if limit is not None]
    if not asked:
        return None
    lines = [
        {"recipe": each.trial.label, "cells": [_goodput_cell(each, name, serving.slo) for name in workloads]}
        for each in served
    ]
    return {"objective": " and ".join(asked), "rows": lines}


def _goodput_cell(served: Served, workload: str, slo: SloConfig) -> str:
    found = goodput_of(served, workload, slo)
    return found.text(significant(found.rate))


def _charts(
    model: str, served: Sequence[Served], workloads: Sequence[str], recipes: Sequence[str]
) -> list[dict[str, Any]]:
    bars = {
        "latency": ("Seconds for one query alone (queries per dollar)", "synchronous", True),
        "throughput": ("Queries a second at saturation (queries per dollar)", "throughput", False),
    }
    charts = []
    for name, (title, mode, is_sync) in bars.items():
        groups = {workload: _bars(served, workload, mode, is_sync) for workload in workloads}
        charts.append({"name": name, "chart": bar_chart(f"{model}: {title}", recipes, groups)})
    for workload in workloads:
        curves = {each.trial.label: curve for each in served if (curve := curve_of(each, workload)) is not None}
        chart = curve_chart(f"{model}, {workload}: time between tokens against request rate", recipes, curves)
        if chart is not None and any(len(curve.points) > 1 for curve in curves.values()):
            charts.append({"name": f"itl-{workload}", "chart": chart})
    return charts


def _bars(served: Sequence[Served], workload: str, mode: str, is_sync: bool) -> list[tuple[str, float, str, bool]]:
    found = []
    for each in served:
        point = next((p for p in each.points if p.workload == workload and p.mode == mode), None)
        value = None if point is None else point.latency_s if is_sync else point.rate
        if point is not None and value is not None:
            per_usd = (each.sync_queries_per_usd if is_sync else each.async_queries_per_usd).get(workload)
            cell = _cell(point, per_usd, is_sync)
            found.append((each.trial.label, value, f"{cell['value']} {cell['per_usd']}", point.is_valid))
    return found


def _ceilings(served: Served, inputs: Mapping[str, Path]) -> Mapping[str, float | None]:
    path = inputs.get(f"ceilings/{served.trial.name}")
    return {} if path is None else read_ceilings(path)


def _price(gpu: Any) -> str:
    listed = ", ".join(f"{price.num_gpus} × {gpu.name} {price.usd_per_hour:g} $/h" for price in gpu.prices)
    when = f", {gpu.priced_on}" if gpu.priced_on else ""
    return f"{listed} ({gpu.price_source or 'source not given'}{when})"


def _device(served: Served) -> str:
    return served.points[0].facts.device.product


def _shape(workload: str, served: Sequence[Served]) -> str:
    point = next(point for each in served for point in each.points if point.workload == workload)
    return f"{point.facts.prompt_tokens} / {point.facts.output_tokens}"


def _interval(ratio: Replicated | None) -> str:
    if (found := measured(ratio)) is None:
        return ""
    return ONCE if found.low is None or found.high is None else f"[{found.low:.2f}, {found.high:.2f}]"
