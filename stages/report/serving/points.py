"""Every point of a profile with what speaks for and against it, and why a format is fast or slow."""

from collections.abc import Mapping
from typing import Any

from stages.gpu import GpuState
from stages.report.artifact import QUANTILES
from stages.report.numbers import MISSING, percent
from stages.report.serving.results import Point, Served
from stages.serving.artifact import ClientCeiling, Device, Distribution
from stages.serving.roofline import least_latency_s, most_requests_per_s


def point_lines(served: Served, ceilings: Mapping[str, float | None]) -> list[dict[str, str]]:
    """A line for each point."""
    return [_line(point, ceilings) for point in served.points]


def point_rows(served: Served, ceilings: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """The same as numbers, for ``serving.parquet``."""
    return [_row(served, point, ceilings) for point in served.points]


def why_lines(served: Served) -> dict[str, str]:
    """The kernels and settings that vLLM chose; what its log does not say is a dash."""
    kernels = served.points[0].facts.kernels
    linear = kernels.linear or {}
    flash = kernels.flash_attention_version
    return {
        "recipe": served.trial.label,
        "linear": "; ".join(f"{scheme}: {kernel}" for scheme, kernel in linear.items()) or "not quantized, or not said",
        "attention": f"{kernels.attention or MISSING}{f', FlashAttention {flash:g}' if flash else ''}",
        "graphs": "yes" if kernels.cuda_graphs else "no",
        "compile": f"{kernels.compile_s:.0f} s" if kernels.compile_s is not None else "no",
        "kv_cache": f"{kernels.kv_cache_tokens:,.0f}" if kernels.kv_cache_tokens else MISSING,
    }


def roofline_share(point: Point, ceilings: Mapping[str, float | None]) -> float | None:
    """What was achieved of what bytes and operations allow; None at a rate that was set, or without ceilings."""
    facts = point.facts
    replicas = facts.replicas  # each has its own weights, and its part of the requests
    num_gpus = max(facts.num_gpus // replicas, 1)
    if point.mode == "synchronous":
        least, found = least_latency_s(facts.work, ceilings, num_gpus), facts.latency_s.median
        return least / found if least is not None and found else None
    if point.mode == "throughput":
        most = most_requests_per_s(facts.work, ceilings, max(facts.concurrency // replicas, 1), num_gpus)
        return point.rate / (most * replicas) if most is not None and point.rate is not None else None
    return None


def _line(point: Point, ceilings: Mapping[str, float | None]) -> dict[str, str]:
    facts, validity = point.facts, point.facts.validity
    return {
        "workload": point.workload,
        "mode": point.mode,
        "recipe": point.trial.label,
        "rate": _number(point.rate),
        "direct": _number(facts.direct_requests_per_s),
        "latency": _three(facts.latency_s),
        "ttft": _three(facts.ttft_ms),
        "itl": _three(facts.itl_ms),
        "roofline": percent(roofline_share(point, ceilings), 0),
        "requests": f"{validity.num_requests} ({validity.num_failed} failed)",
        "warm_up": str(validity.warm_up.num_discarded),
        "spread": percent(validity.spread, 1),
        "client": _ceiling(validity.client_ceiling),
        "gpu": _gpu(facts.device),
        "verdict": "valid" if point.is_valid else "; ".join(validity.reasons),
    }


def _row(served: Served, point: Point, ceilings: Mapping[str, float | None]) -> dict[str, Any]:
    facts, validity = point.facts, point.facts.validity
    last = facts.device.after[0] if facts.device.after else None
    return {
        "trial": point.trial.name,
        "model": point.trial.model,
        "recipe": point.trial.recipe,
        "device": facts.device.product,
        "workload": point.workload,
        "mode": point.mode,
        "prompt_tokens": facts.prompt_tokens,
        "output_tokens": facts.output_tokens,
        "num_gpus": facts.num_gpus,
        "concurrency": facts.concurrency,
        "sm_clock_mhz": last and last.sm_clock_mhz,
        "temperature_c": last and last.temperature_c,
        "usd_per_hour": served.hourly_usd,
        "requests_per_s": facts.requests_per_s.mean,
        "requests_per_s_low": facts.requests_per_s.low,
        "requests_per_s_high": facts.requests_per_s.high,
        "direct_requests_per_s": facts.direct_requests_per_s,
        "client_requests_per_s": validity.client_ceiling.requests_per_s,
        **_quantiles("latency_s", facts.latency_s),
        **_quantiles("ttft_ms", facts.ttft_ms),
        **_quantiles("itl_ms", facts.itl_ms),
        "queries_per_usd": _queries_per_usd(served, point),
        "roofline_share": roofline_share(point, ceilings),
        "is_valid": point.is_valid,
        "reasons": validity.reasons,
        "num_requests": validity.num_requests,
        "num_failed": validity.num_failed,
        "num_warm_up": validity.warm_up.num_discarded,
        "spread": validity.spread,
    }


def _quantiles(name: str, found: Distribution) -> dict[str, float | None]:
    return {f"{name}_{quantile}": getattr(found, quantile) for quantile in QUANTILES}


def _queries_per_usd(served: Served, point: Point) -> float | None:
    known = {"synchronous": served.sync_queries_per_usd, "throughput": served.async_queries_per_usd}
    found = known.get(point.mode, {}).get(point.workload) if point.is_valid else None
    return found.value if found else None


def _three(found: Distribution) -> str:
    """Median, p90 and p99."""
    return " / ".join(map(_number, (found.median, found.p90, found.p99)))


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ceiling(ceiling: ClientCeiling) -> str:
    tokens = ceiling.tokens_per_s
    return f"{ceiling.requests_per_s:.0f}/s" + (f", {tokens:,.0f} tokens/s" if tokens else "")


def _gpu(device: Device) -> str:
    """Clock, temperature and power before and after, of the first GPU."""
    if not device.before or not device.after:
        return MISSING
    return " → ".join(_state(states[0]) for states in (device.before, device.after))


def _state(gpu: GpuState) -> str:
    return f"{_number(gpu.sm_clock_mhz)} MHz {_number(gpu.temperature_c)} °C {_number(gpu.power_w)} W"
