"""From published points to what a reader compares: costs, ratios to the base, and options to choose from.

What is not valid is kept for showing and is in no derived number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.inference import critical_value
from stages.measured import CONFIDENCE, Measured, Replicated
from stages.report.artifact import Row
from stages.report.config import GpuConfig, ServingConfig, TrialRow, usd_per_hour
from stages.report.serving.cost import cost_reduction, queries_per_usd, speedup
from stages.report.serving.options import Curve, Mix, Option
from stages.serving.artifact import PointFacts, read_point

Number = Callable[[PointFacts], float | None]


@dataclass(frozen=True, slots=True)
class Point:
    """One workload in one mode of a trial, at every start; ``mode`` is synchronous, throughput or rate-SHARE."""

    trial: TrialRow
    mode: str
    starts: Sequence[PointFacts]  # those that were published

    @property
    def facts(self) -> PointFacts:
        """For what is the same at every start."""
        return self.starts[0]

    @property
    def workload(self) -> str:
        return self.facts.workload

    @property
    def valid(self) -> list[PointFacts]:
        """The starts that count."""
        return [facts for facts in self.starts if facts.validity.is_valid]

    @property
    def is_valid(self) -> bool:
        return bool(self.valid)

    def over_starts(self, number: Number) -> Replicated | None:
        """Of the starts that count, or of all to show them where none does; what is not positive was not measured."""
        found = {facts.start: value for facts in self.valid or self.starts if (value := number(facts))}
        return Replicated.of(self.trial.name, found) if found else None

    @property
    def rate(self) -> float | None:
        found = self.over_starts(requests_per_s)
        return None if found is None else found.value

    @property
    def latency_s(self) -> float | None:
        found = self.over_starts(median_latency_s)
        return None if found is None else found.value


def requests_per_s(facts: PointFacts) -> float | None:
    """Mean of the start's runs."""
    return facts.requests_per_s.mean


def median_latency_s(facts: PointFacts) -> float | None:
    """Of the start's requests."""
    return facts.latency_s.median


def median_itl_ms(facts: PointFacts) -> float | None:
    """Of the start's requests."""
    return facts.itl_ms.median


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
    def latency_s(self) -> dict[str, Replicated]:
        """One query at a time, by workload."""
        return self._known("synchronous", median_latency_s)

    @property
    def requests_per_s(self) -> dict[str, Replicated]:
        """At maximum throughput, by workload."""
        return self._known("throughput", requests_per_s)

    def _known(self, mode: str, number: Number) -> dict[str, Replicated]:
        found = {name: point.over_starts(number) for name, point in self.valid(mode).items()}
        return {name: each for name, each in found.items() if each is not None}

    @property
    def sync_queries_per_usd(self) -> dict[str, Replicated]:
        return {name: queries_per_usd(found.reciprocal(), self.hourly_usd) for name, found in self.latency_s.items()}

    @property
    def async_queries_per_usd(self) -> dict[str, Replicated]:
        return {name: queries_per_usd(found, self.hourly_usd) for name, found in self.requests_per_s.items()}


def read_served(trials: Sequence[TrialRow], serving: ServingConfig, inputs: Mapping[str, Path]) -> list[Served]:
    """The points among ``inputs`` (``profile/<trial>/<workload>/<mode>``, of later starts ``.../<mode>/2``).

    Raises DataError for a damaged one.
    """
    gpus = {gpu.name: gpu for gpu in serving.gpus}
    return [
        Served(trial, gpus[serving.gpu_of[trial.name]], _points(trial, inputs))
        for trial in trials
        if trial.name in serving.gpu_of
    ]


def base_of(served: Served, everything: Sequence[Served]) -> Served | None:
    """The trial that this one is compared with; else the base of the same model on the same GPU."""
    if served.trial.base is not None:
        return next((other for other in everything if other.trial.name == served.trial.base), None)
    same = (other for other in everything if other.trial.model == served.trial.model and other.gpu == served.gpu)
    return next((other for other in same if other.trial.is_base), None)


def reduction_of(served: Served, base: Served | None) -> Replicated | None:
    """Cost reduction against the base, one query at a time; None for the base itself."""
    if base is None or served is base:
        return None
    return cost_reduction(served.sync_queries_per_usd, base.sync_queries_per_usd)


def speedup_of(served: Served, base: Served | None) -> Replicated | None:
    """Speed-up against the base at maximum throughput per dollar of hardware; None for the base itself."""
    if base is None or served is base:
        return None
    if served.hourly_usd == base.hourly_usd:
        return speedup(served.requests_per_s, base.requests_per_s)
    return speedup(served.async_queries_per_usd, base.async_queries_per_usd)


def option_of(served: Served, rows: Sequence[Row], confidence: float) -> Option:
    """The trial as something to choose; the intervals of ``rows`` are of that confidence."""
    return Option(
        served.trial.label,
        served.latency_s,
        served.requests_per_s,
        served.hourly_usd,
        served.hourly_usd,
        recovery_of(served.trial, rows, confidence),
        {name: curve for name in served.requests_per_s if (curve := curve_of(served, name)) is not None},
    )


def recovery_of(trial: TrialRow, rows: Sequence[Row], confidence: float) -> Measured | None:
    """Mean recovery of the trial's tasks, taken as independent; None unless all were measured, and without an interval
    unless all have one, of the rows' ``confidence``.
    """
    own = [row for row in rows if row["trial"] == trial.name]
    if trial.is_base and own:
        return Measured(1.0, 1.0, 1.0)
    if not own or any(row["recovery"] is None for row in own):
        return None
    value = math.fsum(row["recovery"] for row in own) / len(own)
    if any(row["recovery_low"] is None or row["recovery_high"] is None for row in own):
        return Measured(value)
    scale = critical_value(CONFIDENCE) / critical_value(confidence) / len(own)
    below = scale * math.hypot(*(row["recovery"] - row["recovery_low"] for row in own))
    above = scale * math.hypot(*(row["recovery_high"] - row["recovery"] for row in own))
    return Measured(value, value - below, value + above)


def curve_of(served: Served, workload: str) -> Curve | None:
    """Inter-token latency (ms) against request rate; None without a point that has one."""
    capacity = served.requests_per_s.get(workload)
    found = sorted(
        (
            (point.rate, latency)
            for point in served.points
            if point.workload == workload
            and point.is_valid
            and point.rate
            and (latency := point.over_starts(median_itl_ms))
        ),
        key=lambda known: known[0],
    )
    return Curve(found, capacity) if found and capacity is not None else None


def mixes_of(serving: ServingConfig, served: Sequence[Served]) -> dict[str, Mix]:
    """The named mixes, or all workloads alike."""
    if serving.mixes:
        return dict(serving.mixes)
    return {"every workload alike": dict.fromkeys(workloads_of(served), 1.0)}


def workloads_of(served: Sequence[Served]) -> list[str]:
    """In the order of the points."""
    return list(dict.fromkeys(point.workload for each in served for point in each.points))


def _points(trial: TrialRow, inputs: Mapping[str, Path]) -> list[Point]:
    """In the order of the plan's first start."""
    prefix, found = f"profile/{trial.name}/", dict[tuple[str, str], list[PointFacts]]()
    for name, path in inputs.items():
        if name.startswith(prefix):
            workload, mode, *_ = name.removeprefix(prefix).split("/")
            found.setdefault((workload, mode), []).append(read_point(path))
    return [Point(trial, mode, starts) for (_, mode), starts in found.items()]
