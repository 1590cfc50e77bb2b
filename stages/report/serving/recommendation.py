"""Which format to serve: the best alone and under load, the request rate where that changes, and what nothing beats.

Two formats differ where a test over the starts of their servers says so; where it does not, the answer is that the
evidence does not say, and of what was started once nothing is said.  Pure arithmetic over measurements and prices.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stages.grid.multiplicity import holm
from stages.measured import FALSE_SHARE, ONCE, Replicated
from stages.report.serving.front import Front, unbeaten
from stages.report.serving.options import Curve, Mix, Option, async_cost_usd, sync_cost_usd


@dataclass(frozen=True, slots=True)
class Verdict:
    """``best`` is None where several ``candidates`` cannot be told apart, or where there are none.

    One option alone, with others unknown, is no best.  The first candidate has the lowest number.
    """

    best: str | None
    candidates: tuple[str, ...]
    unknown: tuple[str, ...] = ()  # options that lack a measurement, and might be better
    once: tuple[str, ...] = ()  # candidates that were measured once, so that nothing tells them from others

    @property
    def text(self) -> str:
        if not self.candidates:
            return "not measured"
        if self.best is None and self.candidates[0] in self.once and len(self.candidates) > 1:
            return self._noted(
                f"{ONCE}, no verdict; the lowest is {self.candidates[0]}", {"not measured": self.unknown}
            )
        known = self.best or f"not enough evidence: {' or '.join(self.candidates)}"
        return self._noted(known, {ONCE: self.once, "not measured": self.unknown})

    def _noted(self, text: str, notes: Mapping[str, Sequence[str]]) -> str:
        said = "; ".join(f"{note}: {', '.join(names)}" for note, names in notes.items() if names)
        return f"{text} ({said})" if said else text


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
    untested: tuple[str, ...]  # workloads with formats whose curves were measured once
    unbeaten: Front


def recommend(options: Sequence[Option], mix: Mix) -> Recommendation:
    """The advice that the measurements of ``options`` support for queries drawn from ``mix``."""
    synchronous = _known(options, lambda option: sync_cost_usd(option, mix))
    asynchronous = _known(options, lambda option: async_cost_usd(option, mix))
    curves = {workload: _curves(options, workload) for workload in mix}
    names = [option.recipe for option in options]
    return Recommendation(
        cheapest(synchronous, names),
        cheapest(asynchronous, names),
        tuple(flip for workload, own in curves.items() for flip in find_flips(workload, own)),
        tuple(workload for workload, own in curves.items() if any(curve.is_once for curve in own.values())),
        unbeaten(options, mix),
    )


def cheapest(costs: Mapping[str, Replicated], names: Sequence[str] = ()) -> Verdict:
    """The lowest of the known among ``names``, if it differs from each other one by Welch's test, adjusted by Holm for
    their number.
    """
    unknown = tuple(name for name in names if name not in costs)
    if not costs:
        return Verdict(None, (), unknown)
    leader = min(costs, key=lambda name: costs[name].value)
    others = [name for name in costs if name != leader]
    tested = [name for name in others if not (costs[leader].is_once or costs[name].is_once)]
    ps = holm([costs[leader].p_apart(costs[name]) for name in tested])
    behind = {name for name, p in zip(tested, ps, strict=True) if p <= FALSE_SHARE}
    candidates = (leader, *(name for name in others if name not in behind))
    is_best = candidates == (leader,) and (others or not unknown)
    once = tuple(name for name in candidates if costs[name].is_once)
    return Verdict(leader if is_best else None, candidates, unknown, once)


def find_flips(workload: str, curves: Mapping[str, Curve]) -> list[Flip]:
    """The changes of the fastest format with the request rate, each between the nearest rates that show it."""
    rates = {rate for curve in curves.values() for rate, _ in curve.points}
    most = (curve.capacity.measured.high for curve in curves.values())
    rates |= {math.nextafter(high, math.inf) for high in most if high is not None}
    winners = [(rate, best) for rate in sorted(rates) if (best := fastest(curves, rate).best) is not None]
    return [
        Flip(workload, before, after, low, high)
        for (low, before), (high, after) in pairwise(winners)
        if before != after
    ]


def fastest(curves: Mapping[str, Curve], rate: float) -> Verdict:
    """The format with the lowest latency at a request rate; none where one may keep up with it or may not."""
    able = {name: curve for name, curve in curves.items() if curve.may_reach(rate)}
    if not all(curve.surely_reaches(rate) for curve in able.values()):
        return Verdict(None, tuple(able))
    found = cheapest({name: curve.latency_at(rate) for name, curve in able.items()})
    is_bound = found.best is not None and len(able) > 1 and not able[found.best].is_known_at(rate)
    return Verdict(None, tuple(able)) if is_bound else found


def _known(options: Sequence[Option], cost: Callable[[Option], Replicated | None]) -> dict[str, Replicated]:
    return {option.recipe: known for option in options if (known := cost(option)) is not None}


def _curves(options: Sequence[Option], workload: str) -> dict[str, Curve]:
    return {option.recipe: option.curves[workload] for option in options if workload in option.curves}
