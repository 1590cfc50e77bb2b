"""Which formats no other beats in recovery, latency alone and cost at saturation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stages.grid.multiplicity import holm
from stages.inference import critical_value
from stages.measured import CONFIDENCE, FALSE_SHARE, ONCE, Error, Measured, Replicated
from stages.report.serving.options import Mix, Option, async_cost_usd, mean_latency_s

COST_MARGIN = 0.02  # of cost and latency: a format that is worse by less may still beat another
RECOVERY_MARGIN = 0.01  # of the base's score


@dataclass(frozen=True, slots=True)
class Front:
    """The options that no other beats, and those that were measured once: of these no test can say so."""

    names: tuple[str, ...] = ()
    once: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        once = f"{ONCE}, no verdict: {', '.join(self.once)}" if self.once else ""
        found = "; ".join(filter(None, [", ".join(self.names), once]))
        return found or "not enough is measured (recovery, latency and cost are needed)"


def unbeaten(options: Sequence[Option], mix: Mix) -> Front:
    """The Pareto set over recovery, latency alone and cost at saturation.

    One beats another that it is worse than by no margin in any of the three and better than in one, each by a test over
    starts or documents, adjusted for the number of the others.  What lacks one of the three can neither beat nor be
    beaten, and is left out.
    """
    known = {option.recipe: found for option in options if (found := _Losses.of(option, mix)) is not None}
    tested = {name: losses for name, losses in known.items() if not losses.is_once}
    beaten_by = {name: _beaten_by(name, tested) for name in tested}
    return Front(tuple(_tops(beaten_by)), tuple(name for name in known if name not in tested))


def _beaten_by(name: str, tested: Mapping[str, "_Losses"]) -> set[str]:
    others = [other for other in tested if other != name]
    ps = holm([tested[other].p_beats(tested[name]) for other in others])
    return {other for other, p in zip(others, ps, strict=True) if p <= FALSE_SHARE / 2}


def _tops(beaten_by: Mapping[str, set[str]]) -> Iterator[str]:
    """Those that whoever beats them, directly or through others, is beaten by in turn.

    Within margins two can beat each other, one in cost and one in latency: then neither is worse.
    """
    above = {name: set(others) for name, others in beaten_by.items()}
    for _ in above:
        above = {name: others.union(*(above[other] for other in others)) for name, others in above.items()}
    yield from (name for name, others in above.items() if all(name in above[other] for other in others))


@dataclass(frozen=True, slots=True)
class _Losses:
    """What should be small, and the recovery, which should be large."""

    cost: Replicated
    latency: Replicated
    recovery: Measured

    @classmethod
    def of(cls, option: Option, mix: Mix) -> "_Losses | None":
        cost, latency = async_cost_usd(option, mix), mean_latency_s(option, mix)
        if option.recovery is None or option.recovery.low is None or cost is None or latency is None:
            return None
        return cls(cost, latency, option.recovery)

    @property
    def is_once(self) -> bool:
        return self.cost.is_once or self.latency.is_once

    def p_beats(self, other: "_Losses") -> float:
        """That it is worse by a margin somewhere or better nowhere: the first an intersection-union test."""
        ratios = [self.cost.over(other.cost), self.latency.over(other.latency)]
        gap, error = self.recovery.value - other.recovery.value, _error_between(self.recovery, other.recovery)
        worse = [ratio.p_below(1 + COST_MARGIN) for ratio in ratios] + [error.p_above(gap + RECOVERY_MARGIN)]
        better = [ratio.p_below(1.0) for ratio in ratios] + [error.p_above(gap)]
        return max(*worse, min(1.0, len(better) * min(better)))


def _error_between(one: Measured, other: Measured) -> Error:
    """Of the difference of two recoveries, as if they shared no documents: too large rather than too small."""
    halves = [(each.high - each.low) / 2 for each in (one, other) if each.low is not None and each.high is not None]
    return Error(math.hypot(*halves) / critical_value(CONFIDENCE), None)
