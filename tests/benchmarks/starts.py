"""How often what is said of serving is wrong, by simulation: part of ``tests.benchmarks.statistics``.

Servers whose every start is faster or slower than the last by chance, with requests that vary within it, are judged by
the product's own functions: intervals of latencies and ratios, which format is cheapest, what no other beats, goodput.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from stages.measured import Measured, Replicated, mean_ratio
from stages.report.config import GpuConfig, SloConfig, TrialRow
from stages.report.serving.front import COST_MARGIN, RECOVERY_MARGIN, unbeaten
from stages.report.serving.goodput import goodput_of
from stages.report.serving.options import Option
from stages.report.serving.recommendation import cheapest
from stages.report.serving.results import Point, Served
from stages.serving.artifact import ClientCeiling, Device, Distribution, Kernels, PointFacts, Rate, Validity, WarmUp
from stages.serving.steady import distribution, num_warm_up
from stages.statistics import generator
from tests.benchmarks.grids import Simulated

EFFECT = 0.005  # standard deviation between starts, of the logarithm
WORKLOADS = {"chat": 1.0, "rag": 2.5, "code": 6.0}  # seconds
LIMIT_MS = 50.0
NORMAL_P90, NORMAL_P99 = 1.2815516, 2.3263479
LEAST_COVER, MOST_FALSE, MOST_FALSE_BEATEN = 93.0, 5.0, 5.0

Draw = np.random.Generator


def latencies(rng: Draw, median: float, noise: float, num: int = 10) -> Distribution:
    """Of a start: lognormal requests, less the warm-up."""
    values = median * np.exp(rng.normal(0, noise, num))
    return distribution(values[num_warm_up(num) :].tolist())


def served(
    rng: Draw, server: str, medians: Mapping[str, float], effect: float, noise: float, num_starts: int = 3
) -> dict[str, Replicated]:
    """Latencies by workload; half of a start's effect is the same for all of them."""
    whole = rng.normal(0, effect / np.sqrt(2), num_starts)
    found = {}
    for name, median in medians.items():
        own = whole + rng.normal(0, effect / np.sqrt(2), num_starts)
        starts = {
            start: latencies(rng, median * float(np.exp(shift)), noise).median for start, shift in enumerate(own, 1)
        }
        found[name] = Replicated.of(server, {start: value for start, value in starts.items() if value is not None})
    return found


def covers(num: int, effect: float, noise: float, num_starts: int, other_effect: float) -> list[Simulated]:
    """One workload of two formats: the latency of one, and how many times that of the other."""
    name = f"{num_starts} starts, {_share(effect)} and {_share(other_effect)} between them, {_share(noise)} within"
    rng, alone, ratio = generator(0, "starts", name), [], []
    for _ in range(num):
        one = served(rng, "a", {"chat": 1.0}, effect, noise, num_starts)["chat"]
        other = served(rng, "b", {"chat": 0.7}, other_effect, noise, num_starts)["chat"]
        alone.append(_holds(one.measured, 1.0))
        ratio.append(_holds(one.over(other).measured, 1 / 0.7))
    asked = (("intervals that hold the latency", alone), ("intervals that hold the ratio of two", ratio))
    return [_simulated(name, question, found, least=LEAST_COVER) for question, found in asked]


def covers_mean(num: int, effect: float) -> list[Simulated]:
    """The mean over workloads of how many times as fast a format is."""
    name = f"three workloads, 3 starts, {_share(effect)} between them, 1 % within"
    rng, found = generator(0, "starts", name), []
    for _ in range(num):
        base = served(rng, "base", WORKLOADS, effect, 0.01)
        trial = served(rng, "trial", {each: 0.6 * median for each, median in WORKLOADS.items()}, effect, 0.01)
        ratio = mean_ratio(base, trial)
        assert ratio is not None
        found.append(_holds(ratio.measured, 1 / 0.6))
    return [_simulated(name, "intervals that hold the mean ratio", found, least=LEAST_COVER)]


def told_apart(num: int, num_formats: int, num_starts: int, effect: float) -> list[Simulated]:
    """Formats that are the same."""
    name = f"{num_formats} identical formats, {num_starts} starts, {_share(effect)} between them"
    rng, found = generator(0, "starts", name), []
    for _ in range(num):
        costs = {
            str(each): served(rng, str(each), {"w": 1.0}, effect, 0.01, num_starts)["w"] for each in range(num_formats)
        }
        found.append(cheapest(costs).best is not None)
    return [_simulated(name, "sweeps with one that is called cheapest", found, most=MOST_FALSE)]


def beaten(num: int, loss: float, gain: float) -> list[Simulated]:
    """Two formats: the second costs more by ``loss`` and is faster alone by ``gain``, with as many right answers."""
    what = "the same" if not loss else f"one {_share(gain)} faster alone, whose cost is {_share(loss)} higher"
    name = f"two formats, {what}"
    rng, found = generator(0, "starts", name), []
    for _ in range(num):
        options = [
            _option(rng, "first", 1.0, 1.0),
            _option(rng, "second", 1 / (1 + gain), 1 / (1 + loss)),
        ]
        found.append("first" not in unbeaten(options, {"w": 1.0}).names)
    return [_simulated(name, "of them the first called beaten", found, most=MOST_FALSE_BEATEN)]


def _option(rng: Draw, recipe: str, latency_s: float, queries_per_s: float) -> Option:
    numbers = served(rng, recipe, {"w": latency_s, "rate": 1 / queries_per_s}, EFFECT, 0.01)
    recovery = 1 + rng.normal(0, RECOVERY_MARGIN / 5)
    half = 1.96 * RECOVERY_MARGIN / 5
    ends = Measured(recovery, recovery - half, recovery + half)
    return Option(recipe, {"w": numbers["w"]}, {"w": numbers["rate"].reciprocal()}, 1.0, 1.0, ends)


def goodput(
    num: int, num_requests: int, noise: float, num_starts: int, effect: float, above: float = 0.0
) -> list[Simulated]:
    """A rate at which the time between tokens is ``above`` its limit at p90, over all starts that might be."""
    where = f"{_share(above)} above" if above else "at"
    starts = "1 start" if num_starts == 1 else f"{num_starts} starts, {_share(effect)} between them"
    name = f"p90 {where} its limit, {num_requests} requests, {_share(noise)} within, {starts}"
    rng, found = generator(0, "starts", name), []
    median = LIMIT_MS * (1 + above) / np.exp(NORMAL_P90 * noise)
    for _ in range(num):
        medians = median * np.exp(rng.normal(0, effect, num_starts))
        itl_ms = [distribution((each * np.exp(rng.normal(0, noise, num_requests))).tolist()) for each in medians]
        point = Point(_TRIAL, "rate-0.5", [replace(_FACTS, itl_ms=each, start=i) for i, each in enumerate(itl_ms, 1)])
        found.append(goodput_of(Served(_TRIAL, _GPU, [point]), "chat", SloConfig(itl_ms=LIMIT_MS)).rate is not None)
    return [_simulated(name, "rates that pass", found, most=MOST_FALSE)]


def of_quantiles(num: int, num_requests: int, quantile: str, noise: float) -> list[Simulated]:
    """Of one start, whatever the next would give."""
    name = f"{num_requests} requests of one start, {_share(noise)} within"
    rng, found = generator(0, "starts", name, quantile), []
    truth = float(np.exp({"p90": NORMAL_P90, "p99": NORMAL_P99}[quantile] * noise))
    for _ in range(num):
        each = distribution(np.exp(rng.normal(0, noise, num_requests)).tolist())
        ends = Measured(1.0, getattr(each, f"{quantile}_low"), getattr(each, f"{quantile}_high"))
        found.append(_holds(ends, truth))
    return [_simulated(name, f"intervals that hold {quantile}", found, least=LEAST_COVER)]


def as_if_repeated(num: int, num_requests: int, noise: float) -> list[Simulated]:
    """What is not done: the requests of one start taken for repeats of it."""
    name = (
        f"{num_requests} requests of one start taken for starts, {_share(EFFECT)} between these, {_share(noise)} within"
    )
    rng, holds, apart = generator(0, "starts", name), [], []
    for _ in range(num):
        one, other = (
            Replicated.of(server, dict(enumerate(np.exp(rng.normal(rng.normal(0, EFFECT), noise, num_requests)))))
            for server in ("a", "b")
        )
        holds.append(_holds(one.measured, 1.0))
        apart.append(cheapest({"a": one, "b": other}).best is not None)
    asked = (("intervals that hold the latency", holds), ("identical formats of which one is called cheapest", apart))
    return [_simulated(name, question, found) for question, found in asked]


_TRIAL = TrialRow(name="m/w8a8", model="m", recipe="w8a8")
_GPU = GpuConfig(name="h100", product="H100")
_NOTHING = Distribution(n=0, median=None, p90=None, p99=None)
_FACTS = PointFacts(
    workload="chat",
    mode="rate",
    prompt_tokens=512,
    output_tokens=256,
    num_gpus=1,
    replicas=1,
    rate_share=0.5,
    asked_requests_per_s=4.0,
    requests_per_s=Rate(mean=4.0),
    latency_s=_NOTHING,
    ttft_ms=_NOTHING,
    itl_ms=_NOTHING,
    direct_requests_per_s=None,
    validity=Validity(
        is_valid=True,
        reasons=[],
        num_requests=100,
        num_failed=0,
        warm_up=WarmUp(num_discarded=0, method=""),
        client_ceiling=ClientCeiling(500.0, None),
        repeats=[],
        spread=None,
    ),
    device=Device(product="H100", driver=None, before=None, after=None),
    kernels=Kernels(
        linear=None,
        attention=None,
        flash_attention_version=None,
        cuda_graphs=True,
        cuda_graph_mode=None,
        compile_s=None,
        kv_cache_tokens=None,
    ),
    work=None,
    concurrency=1,
)


def simulations(num: int) -> Iterator[Callable[[], list[Simulated]]]:
    """``num`` replicates each; a fifth where a replicate is many starts."""
    fewer = max(num // 5, 1)
    for effect, noise, num_starts, other_effect in (
        (EFFECT, 0.001, 3, EFFECT),
        (EFFECT, 0.01, 3, EFFECT),
        (EFFECT, 0.1, 3, EFFECT),
        (EFFECT, 0.01, 3, 6 * EFFECT),
        (EFFECT, 0.01, 2, EFFECT),
        (EFFECT, 0.01, 5, EFFECT),
    ):
        yield partial(covers, num, effect, noise, num_starts, other_effect)
    for effect in (EFFECT, 0.03):
        yield partial(covers_mean, fewer, effect)
    for num_formats, num_starts, effect in ((2, 3, EFFECT), (2, 5, EFFECT), (2, 3, 0.03), (4, 3, EFFECT)):
        yield partial(told_apart, num, num_formats, num_starts, effect)
    for loss, gain in ((0.0, 0.0), (COST_MARGIN, 0.3)):
        yield partial(beaten, fewer, loss, gain)
    for num_requests, quantile, noise in ((29, "p90", 0.1), (100, "p90", 0.1), (299, "p99", 0.1), (1000, "p99", 0.1)):
        yield partial(of_quantiles, num, num_requests, quantile, noise)
    for num_requests, noise, num_starts, effect in (
        (29, 0.1, 3, EFFECT),
        (100, 0.1, 3, EFFECT),
        (1000, 0.1, 3, EFFECT),
        (1000, 0.01, 3, EFFECT),
        (29, 0.1, 1, 0.0),
        (1000, 0.1, 1, 0.0),
    ):
        yield partial(goodput, fewer, num_requests, noise, num_starts, effect)
    yield partial(goodput, fewer, 100, 0.1, 3, EFFECT, above=0.02)
    yield partial(as_if_repeated, fewer, 100, 0.01)


def _simulated(design: str, question: str, found: list[bool], **promised: float) -> Simulated:
    return Simulated(
        design=design, question=question, replicates=len(found), percent=float(100 * np.mean(found)), **promised
    )


def _holds(found: Measured, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def _share(value: float) -> str:
    return f"{100 * value:g} %"
