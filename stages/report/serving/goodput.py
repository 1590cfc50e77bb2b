"""The most requests a second at which answers keep within what is asked of their speed."""

from collections.abc import Callable
from dataclasses import dataclass

from stages.measured import ONCE, Measured, Replicated, num_for_quantile
from stages.report.config import SloConfig
from stages.report.numbers import MISSING
from stages.report.serving.results import Point, Served
from stages.serving.artifact import Distribution, PointFacts

FEWEST_REQUESTS = num_for_quantile(0.9)

Of = Callable[[PointFacts], Distribution]


@dataclass(frozen=True, slots=True)
class Goodput:
    """The highest measured rate that surely meets the objectives; None if none does."""

    rate: float | None = None
    is_once: bool = False
    lacks_requests: bool = False  # at some rate

    def text(self, rate: str) -> str:
        """``rate``, which is that of this one, with what must be known of it."""
        if self.rate is not None:
            return f"{rate} ({ONCE})" if self.is_once else rate
        return f"{MISSING} (p90 needs {FEWEST_REQUESTS} requests)" if self.lacks_requests else MISSING


def goodput_of(served: Served, workload: str, slo: SloConfig) -> Goodput:
    """At each rate the upper end of p90 must keep within the objectives: what is found to keep may still not."""
    asked = _asked(slo)
    rates = [p for p in served.points if p.workload == workload and p.mode.startswith("rate") and p.is_valid]
    kept = [(point.rate, len(point.valid) < 2) for point in rates if point.rate is not None and _meets(point, asked)]
    rate, is_once = max(kept, default=(None, False))
    lacks = any(of(facts).n < FEWEST_REQUESTS for point in rates for facts in point.valid for of, _ in asked)
    return Goodput(rate, is_once, lacks)


def quantile_of(point: Point, of: Of, name: str) -> Measured | None:
    """p90 or p99 with its interval: at one start by the order of its requests, over several Student's on the logarithms
    of theirs.  Without an interval where a start has too few requests for one, None where it has too few for the value.
    """
    found = {facts.start: of(facts) for facts in point.valid or point.starts}
    values = {start: value for start, each in found.items() if (value := getattr(each, name))}
    if len(values) < len(found):
        return None
    ends = [(getattr(each, f"{name}_low"), getattr(each, f"{name}_high")) for each in found.values()]
    over_starts = Replicated.of(point.trial.name, values)
    if any(high is None for _, high in ends):
        return Measured(over_starts.value)
    return Measured(over_starts.value, *ends[0]) if len(ends) == 1 else over_starts.measured


def _asked(slo: SloConfig) -> list[tuple[Of, float]]:
    limits: list[tuple[Of, float | None]] = [
        (lambda facts: facts.itl_ms, slo.itl_ms),
        (lambda facts: facts.ttft_ms, slo.ttft_ms),
    ]
    return [(of, limit) for of, limit in limits if limit is not None]


def _meets(point: Point, asked: list[tuple[Of, float]]) -> bool:
    """An unknown end meets nothing."""
    p90s = [(quantile_of(point, of, "p90"), limit) for of, limit in asked]
    return all(p90 is not None and p90.high is not None and p90.high <= limit for p90, limit in p90s)
