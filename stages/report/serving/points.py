"""Every point of a profile with what speaks for and against it, and why a format is fast or slow."""

from collections.abc import Iterable, Mapping
from typing import Any

from stages.gpu import GpuState
from stages.measured import Measured, Replicated, measured, num_for_quantile
from stages.report.numbers import MISSING, percent
from stages.report.serving.goodput import Of, quantile_of
from stages.report.serving.results import Point, Served, requests_per_s
from stages.serving.artifact import ClientCeiling, Device, Distribution, PointFacts
from stages.serving.roofline import least_latency_s, most_requests_per_s


def point_lines(served: Served, ceilings: Mapping[str, float | None]) -> list[dict[str, str]]:
    """A line for each point and start."""
    return [_line(point, facts, ceilings) for point in served.points for facts in point.starts]


def point_rows(served: Served, ceilings: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """A row for each point, over its starts, as numbers for ``serving.parquet``."""
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


def roofline_share(facts: PointFacts, ceilings: Mapping[str, float | None]) -> float | None:
    """What was achieved of what bytes and operations allow; None at a rate that was set, or without ceilings."""
    replicas = facts.replicas  # each has its own weights, and its part of the requests
    num_gpus = max(facts.num_gpus // replicas, 1)
    if facts.mode == "synchronous":
        least, found = least_latency_s(facts.work, ceilings, num_gpus), facts.latency_s.median
        return least / found if least is not None and found else None
    if facts.mode == "throughput":
        most = most_requests_per_s(facts.work, ceilings, max(facts.concurrency // replicas, 1), num_gpus)
        found = facts.requests_per_s.mean
        return found / (most * replicas) if most is not None and found is not None else None
    return None


def _line(point: Point, facts: PointFacts, ceilings: Mapping[str, float | None]) -> dict[str, str]:
    validity = facts.validity
    return {
        "workload": point.workload,
        "mode": f"{point.mode}, start {facts.start}" if len(point.starts) > 1 else point.mode,
        "recipe": point.trial.label,
        "rate": _number(facts.requests_per_s.mean),
        "direct": _number(facts.direct_requests_per_s),
        "latency": _three(facts.latency_s),
        "ttft": _three(facts.ttft_ms),
        "itl": _three(facts.itl_ms),
        "roofline": percent(roofline_share(facts, ceilings), 0),
        "requests": f"{validity.num_requests} ({validity.num_failed} failed)",
        "warm_up": str(validity.warm_up.num_discarded),
        "spread": percent(validity.spread, 1),
        "client": _ceiling(validity.client_ceiling),
        "gpu": _gpu(facts.device),
        "verdict": "valid" if validity.is_valid else "; ".join(validity.reasons),
    }


def _row(served: Served, point: Point, ceilings: Mapping[str, float | None]) -> dict[str, Any]:
    facts, counting = point.facts, point.valid or point.starts
    last = counting[-1].device.after[0] if counting[-1].device.after else None
    rate, direct = point.over_starts(requests_per_s), point.over_starts(lambda each: each.direct_requests_per_s)
    share = point.over_starts(lambda each: roofline_share(each, ceilings))
    spreads = [each.validity.spread for each in counting if each.validity.spread is not None]
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
        **_with_ends("requests_per_s", measured(rate)),
        "direct_requests_per_s": _value(direct),
        "client_requests_per_s": min(each.validity.client_ceiling.requests_per_s for each in counting),
        **_quantiles("latency_s", point, lambda each: each.latency_s),
        **_quantiles("ttft_ms", point, lambda each: each.ttft_ms),
        **_quantiles("itl_ms", point, lambda each: each.itl_ms),
        "queries_per_usd": _queries_per_usd(served, point),
        "roofline_share": _value(share),
        "is_valid": point.is_valid,
        "reasons": list(_reasons(point)),
        "num_starts": len(point.valid),
        "num_requests": sum(each.validity.num_requests for each in counting),
        "num_failed": sum(each.validity.num_failed for each in counting),
        "num_warm_up": sum(each.validity.warm_up.num_discarded for each in counting),
        "spread": max(spreads, default=None),
    }


def _reasons(point: Point) -> Iterable[str]:
    """Why a start does not count."""
    for facts in point.starts:
        where = f"start {facts.start}: " if len(point.starts) > 1 else ""
        yield from (f"{where}{reason}" for reason in facts.validity.reasons)


def _quantiles(name: str, point: Point, of: Of) -> dict[str, float | None]:
    median = point.over_starts(lambda facts: of(facts).median)
    found = _with_ends(f"{name}_median", measured(median))
    found |= {f"{name}_{end}": found.pop(f"{name}_median_{end}") for end in ("low", "high")}
    for quantile in ("p90", "p99"):
        found |= _with_ends(f"{name}_{quantile}", quantile_of(point, of, quantile))
    return found


def _value(found: Replicated | None) -> float | None:
    return None if found is None else found.value


def _with_ends(name: str, found: Measured | None) -> dict[str, float | None]:
    value, low, high = found or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _queries_per_usd(served: Served, point: Point) -> float | None:
    known = {"synchronous": served.sync_queries_per_usd, "throughput": served.async_queries_per_usd}
    found = known.get(point.mode, {}).get(point.workload) if point.is_valid else None
    return found.value if found else None


def _three(found: Distribution) -> str:
    """Median, p90 and p99, with the upper ends of these two, or how many requests an end needs."""
    p90, p99 = _with_end(found.p90, found.p90_high, 0.9), _with_end(found.p99, found.p99_high, 0.99)
    return f"{_number(found.median)} / {p90} / {p99}"


def _with_end(value: float | None, high: float | None, quantile: float) -> str:
    if value is None:
        return MISSING
    end = f"needs {num_for_quantile(quantile)} requests" if high is None else f"≤ {_number(high)}"
    return f"{_number(value)} ({end})"


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
