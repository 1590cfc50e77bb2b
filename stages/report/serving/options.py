"""Formats to choose from, and what a query of a mix of workloads costs and takes in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stages.measured import Measured, Replicated, weighted_sum
from stages.report.serving.cost import queries_per_usd

Mix = Mapping[str, float]  # workload -> share of the queries


@dataclass(frozen=True, slots=True)
class Curve:
    """A format under load: what it does to a latency at some request rates, and the most requests a second it answers.

    ``points`` are (requests/s, latency), sorted by rate.
    """

    points: Sequence[tuple[float, Replicated]]
    capacity: Replicated

    @property
    def is_once(self) -> bool:
        """Whether any of it was measured at one start alone."""
        return self.capacity.is_once or any(latency.is_once for _, latency in self.points)

    def may_reach(self, rate: float) -> bool:
        """Whether it might keep up."""
        high = self.capacity.measured.high
        return high is None or high >= rate

    def surely_reaches(self, rate: float) -> bool:
        """Whether it keeps up beyond doubt."""
        low = self.capacity.measured.low
        return low is not None and low >= rate

    def is_known_at(self, rate: float) -> bool:
        """Whether as high a rate was measured: above, a latency is only known to be no lower."""
        return rate <= self.points[-1][0]

    def latency_at(self, rate: float) -> Replicated:
        """Interpolated; load never makes faster, so the ends bound what lies beyond them."""
        rates = [known for known, _ in self.points]
        if rate <= rates[0]:
            return self.points[0][1]
        if rate > rates[-1]:
            return self.points[-1][1]
        (left, low), (right, high) = next(pair for pair in pairwise(self.points) if pair[0][0] < rate <= pair[1][0])
        share = (rate - left) / (right - left)
        return weighted_sum([(1 - share, low), (share, high)])


@dataclass(frozen=True, slots=True)
class Option:
    """A format as it is served on one kind of GPU.  What could not be measured is not there."""

    recipe: str
    latency_s: Mapping[str, Replicated]  # workload -> of one query at a time
    queries_per_s: Mapping[str, Replicated]  # workload -> at saturation
    sync_usd_per_hour: float  # of the GPUs that answered one query at a time
    async_usd_per_hour: float
    recovery: Measured | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)


def sync_cost_usd(option: Option, mix: Mix) -> Replicated | None:
    """Dollars for a query of the mix, one after the other; None if one of its workloads is not measured."""
    return _mean_of(
        mix,
        {
            name: queries_per_usd(latency.reciprocal(), option.sync_usd_per_hour).reciprocal()
            for name, latency in option.latency_s.items()
        },
    )


def async_cost_usd(option: Option, mix: Mix) -> Replicated | None:
    """Dollars for a query of the mix at saturation; None if one of its workloads is not measured."""
    return _mean_of(
        mix,
        {
            name: queries_per_usd(rate, option.async_usd_per_hour).reciprocal()
            for name, rate in option.queries_per_s.items()
        },
    )


def mean_latency_s(option: Option, mix: Mix) -> Replicated | None:
    """Seconds for a query of the mix alone; None if one of its workloads is not measured."""
    return _mean_of(mix, option.latency_s)


def _mean_of(mix: Mix, terms: Mapping[str, Replicated]) -> Replicated | None:
    if not mix.keys() <= terms.keys():
        return None
    total = sum(mix.values())
    return weighted_sum((share / total, terms[name]) for name, share in mix.items())
