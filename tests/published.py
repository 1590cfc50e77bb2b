"""The tables of the study (arXiv 2411.02355) as if three starts had differed by half of what printing rounds away."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from stages.measured import Measured, Replicated
from stages.report.config import GpuConfig, PriceConfig, usd_per_hour
from stages.report.serving.options import Curve, Option
from stages.statistics import generator

TABLES: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "published_performance.json").read_text())
WORKLOADS = list(TABLES["use_cases"])
QPS_DIGIT = LATENCY_DIGIT = 0.1
SETUPS = list(dict.fromkeys((row["model"], row["gpu"]) for row in TABLES["sync"]))
GPUS = {
    name: GpuConfig(name=name, product=name, prices=[PriceConfig(**price) for price in prices])
    for name, prices in TABLES["prices"].items()
}


@cache
def row(table: str, model: str, gpu: str, recipe: str) -> dict[str, Any]:
    """One row of a table."""
    key = {"model": model, "gpu": gpu, "recipe": recipe}
    return next(found for found in TABLES[table] if key.items() <= found.items())


def recipes(model: str, gpu: str) -> list[str]:
    """The formats that a model was served in on a GPU; the first is BF16."""
    return [found["recipe"] for found in TABLES["sync"] if (found["model"], found["gpu"]) == (model, gpu)]


def hourly_usd(found: dict[str, Any]) -> float:
    """What a row's GPUs cost."""
    return usd_per_hour(GPUS[found["gpu"]], found["num_gpus"])


def by_workload(server: str, values: list[float], digit: float) -> dict[str, Replicated]:
    """A row's cells at three starts, in an order of each cell's own."""
    rng, shift = generator(0, server), digit / 4
    return {
        name: Replicated.of(server, dict(enumerate(rng.permutation([value - shift, value, value + shift]).tolist())))
        for name, value in zip(WORKLOADS, values, strict=True)
    }


def option(model: str, gpu: str, recipe: str) -> Option:
    """A format as the tables show it; the one known point of a curve is a query alone."""
    sync, under_load = row("sync", model, gpu, recipe), row("async", model, gpu, recipe)
    latency_s = by_workload(recipe, sync["latency_s"], LATENCY_DIGIT)
    rates = by_workload(recipe, under_load["qps"], QPS_DIGIT)
    recovery = next(
        found["v1_recovery_pct"] for found in TABLES["recovery"] if (found["model"], found["recipe"]) == (model, recipe)
    )
    return Option(
        recipe,
        latency_s,
        rates,
        hourly_usd(sync),
        hourly_usd(under_load),
        Measured(recovery / 100, recovery / 100 - 0.00005, recovery / 100 + 0.00005),
        {name: Curve([(1 / latency_s[name].value, latency_s[name])], rates[name]) for name in WORKLOADS},
    )
