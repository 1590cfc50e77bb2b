"""Every point of a profile with what speaks for and against it, and why a format is fast or slow."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from stages.report.numbers import MISSING, percent
from stages.report.serving.results import Point, Served
from stages.serving.roofline import Work, least_latency_s, most_requests_per_s

_DISTRIBUTIONS = [
    f"{name}_{key}" for name in ("latency_s", "ttft_ms", "itl_ms") for key in ("median", "low", "high", "p90", "p99")
]
_CLOCKS = ["sm_clock_mhz", "temperature_c"]  # of the first GPU, at the end
_TYPES = {
    pa.string(): ["trial", "model", "recipe", "device", "workload", "mode"],
    pa.int64(): ["prompt_tokens", "output_tokens", "num_gpus", "concurrency", *_CLOCKS],
    pa.float64(): [
        *("usd_per_hour", "requests_per_s", "requests_per_s_low", "requests_per_s_high", "direct_requests_per_s"),
        "client_requests_per_s",
        *_DISTRIBUTIONS,
        *("queries_per_usd", "roofline_share", "spread"),
    ],
    pa.bool_(): ["is_valid"],
    pa.list_(pa.string()): ["reasons"],
}
_COUNTS = ["num_requests", "num_failed", "num_warm_up"]
POINT_SCHEMA = pa.schema(
    [*((name, kind) for kind, names in _TYPES.items() for name in names), *((name, pa.int64()) for name in _COUNTS)]
)


def point_lines(served: Served, ceilings: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line for each point."""
    return [_line(point, ceilings) for point in served.points]


def point_rows(served: Served, ceilings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same as numbers, for ``serving.parquet``."""
    return [_row(served, point, ceilings) for point in served.points]


def why_lines(served: Served) -> dict[str, str]:
    """The kernels and settings that vLLM chose; what its log does not say is a dash."""
    kernels = served.points[0].document["kernels"]
    linear = kernels["linear"] or {}
    flash = kernels["flash_attention_version"]
    return {
        "recipe": served.trial.label,
        "linear": "; ".join(f"{scheme}: {kernel}" for scheme, kernel in linear.items()) or "not quantized, or not said",
        "attention": f"{kernels['attention'] or MISSING}{f', FlashAttention {flash:g}' if flash else ''}",
        "graphs": "yes" if kernels["cuda_graphs"] else "no",
        "compile": f"{kernels['compile_s']:.0f} s" if kernels["compile_s"] is not None else "no",
        "kv_cache": f"{kernels['kv_cache_tokens']:,.0f}" if kernels["kv_cache_tokens"] else MISSING,
    }


def roofline_share(point: Point, ceilings: Mapping[str, Any]) -> float | None:
    """What was achieved of what bytes and operations allow; None at a rate that was set, or without ceilings."""
    work = Work(**point.document["work"])
    replicas = int(point.document["replicas"])  # each has its own weights, and its part of the requests
    num_gpus = max(int(point.document["num_gpus"]) // replicas, 1)
    if point.mode == "synchronous":
        least, found = least_latency_s(work, ceilings, num_gpus), point.document["latency_s"]["median"]
        return least / found if least is not None and found else None
    if point.mode == "throughput":
        most = most_requests_per_s(work, ceilings, max(int(point.document["concurrency"]) // replicas, 1), num_gpus)
        return point.rate / (most * replicas) if most is not None and point.rate is not None else None
    return None


def _line(point: Point, ceilings: Mapping[str, Any]) -> dict[str, str]:
    document = point.document
    validity = document["validity"]
    return {
        "workload": point.workload,
        "mode": point.mode,
        "recipe": point.trial.label,
        "rate": _number(point.rate),
        "direct": _number(document["direct_requests_per_s"]),
        "latency": _three(document["latency_s"]),
        "ttft": _three(document["ttft_ms"]),
        "itl": _three(document["itl_ms"]),
        "roofline": percent(roofline_share(point, ceilings), 0),
        "requests": f"{validity['num_requests']} ({validity['num_failed']} failed)",
        "warm_up": str(validity["warm_up"]["num_discarded"]),
        "spread": percent(validity["spread"], 1),
        "client": _ceiling(validity["client_ceiling"]),
        "gpu": _gpu(document["device"]),
        "verdict": "valid" if point.is_valid else "; ".join(validity["reasons"]),
    }


def _row(served: Served, point: Point, ceilings: Mapping[str, Any]) -> dict[str, Any]:
    document, validity = point.document, point.document["validity"]
    return {
        "trial": point.trial.name,
        "model": point.trial.model,
        "recipe": point.trial.recipe,
        "device": document["device"]["product"],
        "workload": point.workload,
        "mode": point.mode,
        "prompt_tokens": document["prompt_tokens"],
        "output_tokens": document["output_tokens"],
        "num_gpus": document["num_gpus"],
        "concurrency": document["concurrency"],
        **{name: (document["device"]["after"] or [{}])[0].get(name) for name in _CLOCKS},
        "usd_per_hour": served.hourly_usd,
        "requests_per_s": document["requests_per_s"]["mean"],
        "requests_per_s_low": document["requests_per_s"]["low"],
        "requests_per_s_high": document["requests_per_s"]["high"],
        "direct_requests_per_s": document["direct_requests_per_s"],
        "client_requests_per_s": validity["client_ceiling"]["requests_per_s"],
        **{name: document[name.rpartition("_")[0]][name.rpartition("_")[2]] for name in _DISTRIBUTIONS},
        "queries_per_usd": _queries_per_usd(served, point),
        "roofline_share": roofline_share(point, ceilings),
        "is_valid": point.is_valid,
        "reasons": validity["reasons"],
        "num_requests": validity["num_requests"],
        "num_failed": validity["num_failed"],
        "num_warm_up": validity["warm_up"]["num_discarded"],
        "spread": validity["spread"],
    }


def _queries_per_usd(served: Served, point: Point) -> float | None:
    known = {"synchronous": served.sync_queries_per_usd, "throughput": served.async_queries_per_usd}
    found = known.get(point.mode, {}).get(point.workload) if point.is_valid else None
    return found.value if found else None


def _three(found: Mapping[str, float | None]) -> str:
    """Median, p90 and p99."""
    return " / ".join(_number(found[name]) for name in ("median", "p90", "p99"))


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ceiling(ceiling: Mapping[str, float | None]) -> str:
    tokens = ceiling["tokens_per_s"]
    return f"{ceiling['requests_per_s']:.0f}/s" + (f", {tokens:,.0f} tokens/s" if tokens else "")


def _gpu(device: Mapping[str, Any]) -> str:
    """Clock, temperature and power before and after, of the first GPU."""
    if not device["before"] or not device["after"]:
        return MISSING
    ends = [device[when][0] for when in ("before", "after")]
    units = {"sm_clock_mhz": "MHz", "temperature_c": "°C", "power_w": "W"}
    return " → ".join(" ".join(f"{_number(end[name])} {unit}" for name, unit in units.items()) for end in ends)
