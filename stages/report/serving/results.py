"""From published points to what a reader compares: costs, ratios to the base, and options to choose from.

A point that is not valid is kept for showing and is in no derived number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.measured import Measured, weighted_sum
from stages.report.artifact import Row
from stages.report.config import GpuConfig, ServingConfig, SloConfig, TrialRow, usd_per_hour
from stages.report.serving.cost import cost_reduction, queries_per_usd, speedup
from stages.report.serving.recommendation import Curve, Mix, Option
from stages.serving.artifact import PointFacts, read_point

ASSUMED_SHARE = 0.1  # the relative half-interval of what was not repeated, where nothing of its trial was


@dataclass(frozen=True, slots=True)
class Point:
    """One published point of a trial; ``mode`` is synchronous, throughput or rate-SHARE."""

    trial: TrialRow
    mode: str
    facts: PointFacts

    @property
    def workload(self) -> str:
        return self.facts.workload

    @property
    def is_valid(self) -> bool:
        return self.facts.validity.is_valid

    @property
    def rate(self) -> float | None:
        return self.facts.requests_per_s.mean


@dataclass(frozen=True, slots=True)
class Served:
    """All points of one trial, and what its GPUs cost."""

    trial: TrialRow
    gpu: GpuConfig
    points: Sequence[Point]

    def valid(self, mode: str) -> dict[str, Point]:
        """The points of a mode that count, by workload."""
        return {point.workload: point for point in self.points if point.mode == mode and point.is_valid}

    @property
    def hourly_usd(self) -> float:
        num_gpus = max((point.facts.num_gpus for point in self.points), default=1)
        return usd_per_hour(self.gpu, max(num_gpus, 1))

    @property
    def latency_s(self) -> dict[str, Measured]:
        """One query at a time, by workload."""
        found = {name: point.facts.latency_s for name, point in self.valid("synchronous").items()}
        return _with_intervals({name: (each.median, each.low, each.high) for name, each in found.items()})

    @property
    def requests_per_s(self) -> dict[str, Measured]:
        """At maximum throughput, by workload."""
        found = {name: point.facts.requests_per_s for name, point in self.valid("throughput").items()}
        return _with_intervals({name: (each.mean, each.low, each.high) for name, each in found.items()})

    @property
    def sync_queries_per_usd(self) -> dict[str, Measured]:
        return {name: queries_per_usd(found.reciprocal(), self.hourly_usd) for name, found in self.latency_s.items()}

    @property
    def async_queries_per_usd(self) -> dict[str, Measured]:
        return {name: queries_per_usd(found, self.hourly_usd) for name, found in self.requests_per_s.items()}


def read_served(trials: Sequence[TrialRow], serving: ServingConfig, inputs: Mapping[str, Path]) -> list[Served]:
    """The points among ``inputs`` (``profile/<trial>/<workload>/<mode>``); DataError for a damaged one."""
    gpus = {gpu.name: gpu for gpu in serving.gpus}
    return [
        Served(trial, gpus[serving.gpu_of[trial.name]], list(_points(trial, inputs)))
        for trial in trials
        if trial.name in serving.gpu_of
    ]


def base_of(served: Served, everything: Sequence[Served]) -> Served | None:
    """The trial that this one is compared with; else the base of the same model on the same GPU."""
    if served.trial.base is not None:
        return next((other for other in everything if other.trial.name == served.trial.base), None)
    same = (other for other in everything if other.trial.model == served.trial.model and other.gpu == served.gpu)
    return next((other for other in same if other.trial.is_base), None)


def reduction_of(served: Served, base: Served | None) -> Measured | None:
    """Cost reduction against the base, one query at a time; None for the base itself."""
    if base is None or served is base:
        return None
    return cost_reduction(served.sync_queries_per_usd, base.sync_queries_per_usd)


def speedup_of(served: Served, base: Served | None) -> Measured | None:
    """Speed-up against the base at maximum throughput per dollar of hardware; None for the base itself."""
    if base is None or served is base:
        return None
    if served.hourly_usd == base.hourly_usd:
        return speedup(served.requests_per_s, base.requests_per_s)
    return speedup(served.async_queries_per_usd, base.async_queries_per_usd)


def option_of(served: Served, rows: Sequence[Row]) -> Option:
    """The trial as something to choose."""
    return Option(
        served.trial.label,
        served.latency_s,
        served.requests_per_s,
        served.hourly_usd,
        served.hourly_usd,
        recovery_of(served.trial, rows),
        {name: curve for name in served.requests_per_s if (curve := curve_of(served, name)) is not None},
    )


def recovery_of(trial: TrialRow, rows: Sequence[Row]) -> Measured | None:
    """Mean recovery of the trial's tasks; None unless all were measured."""
    own = [row for row in rows if row["trial"] == trial.name]
    if trial.is_base and own:
        return Measured.exactly(1.0)
    if not own or any(row["recovery"] is None for row in own):
        return None
    return weighted_sum(
        (1 / len(own), _measured(row["recovery"], row["recovery_low"], row["recovery_high"])) for row in own
    )


def curve_of(served: Served, workload: str) -> Curve | None:
    """Inter-token latency (ms) against request rate; None without a point that has one."""
    capacity = served.requests_per_s.get(workload)
    found = sorted(
        (point.rate, latency)
        for point in served.points
        if point.workload == workload and point.is_valid and point.rate and (latency := _itl(point))
    )
    return Curve(found, capacity) if found and capacity is not None else None


def _itl(point: Point) -> Measured | None:
    """Milliseconds between two tokens; what was not repeated is not known exactly."""
    found = point.facts.itl_ms
    return _with_intervals({"": (found.median, found.low, found.high)}).get("")


def mixes_of(serving: ServingConfig, served: Sequence[Served]) -> dict[str, Mix]:
    """The named mixes, or all workloads alike."""
    if serving.mixes:
        return dict(serving.mixes)
    return {"every workload alike": dict.fromkeys(workloads_of(served), 1.0)}


def workloads_of(served: Sequence[Served]) -> list[str]:
    """In the order of the points."""
    return list(dict.fromkeys(point.workload for each in served for point in each.points))


def goodput_of(served: Served, workload: str, serving: ServingConfig) -> float | None:
    """The highest measured rate (requests/s) that meets the objectives at p90; None if none does, or there are none."""
    rates = [
        point.rate
        for point in served.points
        if point.workload == workload and point.is_valid and point.rate is not None and _meets(point, serving.slo)
    ]
    return max(rates, default=None) if serving.slo.is_set else None


def _meets(point: Point, slo: SloConfig) -> bool:
    """An unknown p90 meets nothing."""
    held = [(point.facts.itl_ms.p90, slo.itl_ms), (point.facts.ttft_ms.p90, slo.ttft_ms)]
    return all(limit is None or (p90 is not None and p90 <= limit) for p90, limit in held)


def _points(trial: TrialRow, inputs: Mapping[str, Path]) -> Iterator[Point]:
    prefix = f"profile/{trial.name}/"
    for name, path in inputs.items():
        if name.startswith(prefix):
            yield Point(trial, name.rsplit("/", 1)[1], read_point(path))


def _with_intervals(found: Mapping[str, tuple[float | None, float | None, float | None]]) -> dict[str, Measured]:
    """What is known; what was not repeated takes the widest relative interval of what was."""
    known = {name: (value, low, high) for name, (value, low, high) in found.items() if value is not None}
    repeated = [(high - low) / 2 / value for value, low, high in known.values() if low is not None and high is not None]
    share = min(max(repeated, default=ASSUMED_SHARE), 1.0)
    return {
        name: Measured(value, value * (1 - share), value * (1 + share)) if low is None else _measured(value, low, high)
        for name, (value, low, high) in known.items()
    }


def _measured(value: float, low: float | None, high: float | None) -> Measured:
    return Measured(value, value if low is None else low, value if high is None else high)
