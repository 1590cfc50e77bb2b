"""Which format to serve: the best alone and under load, the request rate where that changes, and what nothing beats.

Two numbers differ only where their intervals do not overlap; where they do, the answer is that the evidence does not
say.  Pure arithmetic over what was measured, and over prices.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stages.measured import Measured, weighted_sum
from stages.report.serving.cost import queries_per_usd

Mix = Mapping[str, float]  # workload -> share of the queries


@dataclass(frozen=True, slots=True)
class Curve:
    """A format under load: what it does to a latency at some request rates, and the most requests a second it answers.

    ``points`` are (requests/s, latency), sorted by rate.
    """

    points: Sequence[tuple[float, Measured]]
    capacity: Measured

    def latency_at(self, rate: float) -> Measured:
        """Interpolated; load never makes faster, so the ends bound what lies beyond them."""
        rates = [known for known, _ in self.points]
        if rate <= rates[0]:
            return self.points[0][1]
        if rate > rates[-1]:
            return Measured(math.inf, self.points[-1][1].low, math.inf)
        (left, low), (right, high) = next(pair for pair in pairwise(self.points) if pair[0][0] < rate <= pair[1][0])
        share = (rate - left) / (right - left)
        return Measured(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))


@dataclass(frozen=True, slots=True)
class Option:
    """A format as it is served on one kind of GPU.  What could not be measured is not there."""

    recipe: str
    latency_s: Mapping[str, Measured]  # workload -> of one query at a time
    queries_per_s: Mapping[str, Measured]  # workload -> at saturation
    sync_usd_per_hour: float  # of the GPUs that answered one query at a time
    async_usd_per_hour: float
    recovery: Measured | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``best`` is None where the intervals of several ``candidates`` overlap, or where there are none.

    One option alone, with others unknown, is no best.
    """

    best: str | None
    candidates: tuple[str, ...]
    unknown: tuple[str, ...] = ()  # options that lack a measurement, and might be better

    @property
    def text(self) -> str:
        if not self.candidates:
            return "not measured"
        known = self.best or f"not enough evidence: {' or '.join(self.candidates)}"
        return f"{known} (not measured: {', '.join(self.unknown)})" if self.unknown else known


@dataclass(frozen=True, slots=True)
class Flip:
    """Somewhere between two request rates the fastest format changes."""

    workload: str
    below: str
    above: str
    low_rate: float
    high_rate: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer for one model, GPU and mix of workloads."""

    synchronous: Verdict
    asynchronous: Verdict
    flips: tuple[Flip, ...]
    unbeaten: tuple[str, ...]


def recommend(options: Sequence[Option], mix: Mix) -> Recommendation:
    """The advice that the measurements of ``options`` support for queries drawn from ``mix``."""
    synchronous = _known(options, lambda option: sync_cost_usd(option, mix))
    asynchronous = _known(options, lambda option: async_cost_usd(option, mix))
    flips = [flip for workload in mix for flip in find_flips(workload, _curves(options, workload))]
    names = [option.recipe for option in options]
    return Recommendation(
        cheapest(synchronous, names), cheapest(asynchronous, names), tuple(flips), unbeaten(options, mix)
    )


def sync_cost_usd(option: Option, mix: Mix) -> Measured | None:
    """Dollars for a query of the mix, one after the other; None if one of its workloads is not measured."""
    return _mean(
        mix,
        {
            name: queries_per_usd(latency.reciprocal(), option.sync_usd_per_hour).reciprocal()
            for name, latency in option.latency_s.items()
        },
    )


def async_cost_usd(option: Option, mix: Mix) -> Measured | None:
    """Dollars for a query of the mix at saturation; None if one of its workloads is not measured."""
    return _mean(
        mix,
        {
            name: queries_per_usd(rate, option.async_usd_per_hour).reciprocal()
            for name, rate in option.queries_per_s.items()
        },
    )


def cheapest(costs: Mapping[str, Measured], names: Sequence[str] = ()) -> Verdict:
    """The lowest of the known among ``names``, if its interval lies below all others."""
    unknown = tuple(name for name in names if name not in costs)
    if not costs:
        return Verdict(None, (), unknown)
    leader = min(costs, key=lambda name: (costs[name].value, costs[name].low))
    rivals = [name for name in costs if name != leader and not costs[leader].is_below(costs[name])]
    is_alone = len(costs) == 1 and unknown
    return Verdict(None if rivals or is_alone else leader, (leader, *rivals), unknown)


def find_flips(workload: str, curves: Mapping[str, Curve]) -> list[Flip]:
    """The changes of the fastest format with the request rate, each between the nearest rates that show it."""
    rates = {rate for curve in curves.values() for rate, _ in curve.points}
    rates |= {math.nextafter(curve.capacity.high, math.inf) for curve in curves.values()}
    winners = [(rate, best) for rate in sorted(rates) if (best := fastest(curves, rate).best) is not None]
    return [
        Flip(workload, before, after, low, high)
        for (low, before), (high, after) in pairwise(winners)
        if before != after
    ]


def fastest(curves: Mapping[str, Curve], rate: float) -> Verdict:
    """The format with the lowest latency at a request rate; none where one may keep up with it or may not."""
    able = {name: curve for name, curve in curves.items() if curve.capacity.high >= rate}
    if any(curve.capacity.low < rate for curve in able.values()):
        return Verdict(None, tuple(able))
    return cheapest({name: curve.latency_at(rate) for name, curve in able.items()})


def unbeaten(options: Sequence[Option], mix: Mix) -> tuple[str, ...]:
    """The Pareto set over recovery, latency alone and cost at saturation.

    An option leaves it when another is at least as good in all three and better in one beyond doubt.  An option that
    lacks one of them can neither beat nor be beaten, and is left out.
    """
    losses = {option.recipe: known for option in options if (known := _losses(option, mix)) is not None}
    return tuple(
        name for name, own in losses.items() if not any(_beats(other, own) for other in losses.values() if other != own)
    )


def _losses(option: Option, mix: Mix) -> tuple[Measured, ...] | None:
    """What should be small: cost, latency, and 1 - recovery (shifted, since a recovery may exceed 1)."""
    cost, latency = async_cost_usd(option, mix), _mean(mix, option.latency_s)
    if option.recovery is None or cost is None or latency is None:
        return None
    recovery = option.recovery
    return cost, latency, Measured(-recovery.value, -recovery.high, -recovery.low)


def _beats(one: Sequence[Measured], other: Sequence[Measured]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a.value <= b.value for a, b in pairs) and any(a.is_below(b) for a, b in pairs)


def _mean(mix: Mix, terms: Mapping[str, Measured]) -> Measured | None:
    if not mix.keys() <= terms.keys():
        return None
    total = sum(mix.values())
    return weighted_sum((share / total, terms[name]) for name, share in mix.items())


def _known(options: Sequence[Option], cost: Callable[[Option], Measured | None]) -> dict[str, Measured]:
    return {option.recipe: known for option in options if (known := cost(option)) is not None}


def _curves(options: Sequence[Option], workload: str) -> dict[str, Curve]:
    return {option.recipe: option.curves[workload] for option in options if workload in option.curves}
