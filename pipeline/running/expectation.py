"""What a run is expected to take before it starts: batches with the seconds of their steps, hours, dollars."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.config.execution import BudgetConfig, ClusterConfig, RunnerKind
from pipeline.config.schema import Config
from pipeline.planning.devices import compute_device
from pipeline.planning.estimate import Estimator, Grounds
from pipeline.planning.plan import Plan
from pipeline.planning.prices import usd_an_hour
from pipeline.running.batches import Batch, batches, in_families
from pipeline.running.control import Limit
from pipeline.running.order import Seconds, by_size
from pipeline.running.schedule import Capacity, makespan_s
from pipeline.steps.step import Step
from pipeline.store.store import Store
from stages.gpu import num_visible_gpus
from stages.report.config import usd_per_hour


@dataclass(frozen=True, slots=True)
class StageCost:
    """What the steps of a stage are expected to take; ``num_unknown`` of them are in no number."""

    name: str
    seconds: float
    gpu_hours: float
    num_unknown: int


@dataclass(frozen=True, slots=True)
class Expectation:
    """Batches in their order, whose steps say what is expected of them, and the seconds behind each (``end_s``)."""

    plan: Plan
    batches: Sequence[Batch]
    end_s: Sequence[float]
    capacity: Capacity
    grounds: Grounds

    @property
    def num_unknown(self) -> int:
        """Steps that nothing is known of: no other number holds them."""
        return sum(step.expected_s is None for batch in self.batches for step in batch.steps)

    @property
    def gpu_hours(self) -> float:
        """Hours from the start to the end of each step, times the GPUs that it holds."""
        return sum(stage.gpu_hours for stage in self.stages())

    @property
    def usd(self) -> float | None:
        """For the GPUs while steps hold them; None where one has no price, or no GPU is held."""
        held = [(batch, usd_an_hour(self.plan, batch.steps[0])) for batch in self.batches if batch.resources.num_gpus]
        if not held or any(price is None for _, price in held):
            return None
        return sum(_seconds(batch) / 3600 * (price or 0.0) for batch, price in held)

    @property
    def num_gpus(self) -> float | None:
        """GPUs that it runs on; None where that is not known before it runs."""
        needed = max((batch.resources.num_gpus for batch in self.batches), default=0.0)
        return needed if self.capacity.lanes or not needed else self.capacity.num_gpus

    @property
    def wall_s(self) -> float | None:
        """From the first step to the end of the last process; None where the GPUs are not known, or are too few."""
        needed = max((batch.resources.num_gpus for batch in self.batches), default=0.0)
        if self.num_gpus is None or self.num_gpus < needed:
            return None
        seconds = [_seconds(batch) + end_s for batch, end_s in zip(self.batches, self.end_s, strict=True)]
        return makespan_s(self.batches, seconds, self.capacity)

    @property
    def usd_rented(self) -> float | None:
        """For all the GPUs all the time; None where they have no one price."""
        configs = [trial.trial.config for trial in self.plan.trials.values()]
        gpus = {config.gpu.name: config.gpu for config in configs if config.engine.on_gpu and config.has_price}
        if self.wall_s is None or not self.num_gpus or len(gpus) != 1:
            return None
        return self.wall_s / 3600 * usd_per_hour(next(iter(gpus.values())), self.num_gpus)

    @property
    def urgency(self) -> Seconds:
        """What batches are compared by: what is expected of them, or their size where evaluations are not known."""
        steps = [step for batch in self.batches for step in batch.steps]
        is_known = all(step.expected_s is not None for step in steps if step.num_documents)
        return _seconds if is_known else by_size(self.plan)

    def stages(self) -> list[StageCost]:
        """By stage, in the order of the batches."""
        found: dict[str, list[Step]] = {}
        for step in (step for batch in self.batches for step in batch.steps):
            found.setdefault(step.stage.name, []).append(step)
        return [_stage_cost(name, steps) for name, steps in found.items()]


def expect(plan: Plan, steps: Sequence[Step], store: Store, cluster: ClusterConfig) -> Expectation:
    """What making the missing ``steps`` is expected to take, by the table and by what the store has measured."""
    devices = _devices([(name, trial.trial.config) for name, trial in plan.trials.items()])
    estimator = Estimator(plan, devices, store.timings(plan.steps))
    found = batches(steps, cluster.replicas)
    if cluster.runner is RunnerKind.inline:  # elsewhere a family shares a session if its legs happen to be ready
        found = in_families(found)
    work = [_expecting(batch, estimator.batch_s(batch.steps)) for batch in found]
    end_s = [estimator.end_s(batch.steps[-1]) for batch in work]
    return Expectation(plan, work, end_s, capacity_of(cluster), estimator.grounds)


def limits_of(budget: BudgetConfig, plan: Plan) -> list[Limit]:
    """What a run may spend."""
    limits = []
    if budget.gpu_hours is not None:
        limits.append(Limit(f"budget.gpu_hours={budget.gpu_hours:g}", budget.gpu_hours))
    if budget.usd is not None:
        limits.append(Limit(f"budget.usd={budget.usd:g}", budget.usd, lambda step: usd_an_hour(plan, step) or 0.0))
    return limits


def over_budget(expected: Expectation, limits: Sequence[Limit]) -> list[str]:
    """For each limit that the run is expected to reach, a line: it begins all the same, and stops before."""
    lines = []
    for limit in limits:
        spent = sum(limit.an_hour(batch.steps[0]) * _seconds(batch) / 3600 for batch in expected.batches)
        if spent > limit.amount:
            least = "at least " if expected.num_unknown else ""
            lines.append(f"{limit.name} will not do: this run is expected to take {least}{spent:.3g}; it stops before")
    return lines


def capacity_of(cluster: ClusterConfig) -> Capacity:
    """What a run has at once, as far as that is known before it connects to its cluster."""
    if cluster.runner is RunnerKind.inline:
        return Capacity(lanes=True)
    if cluster.address is not None:
        return Capacity(num_gpus=cluster.num_gpus)
    num_gpus = num_visible_gpus() if cluster.num_gpus is None else cluster.num_gpus
    # GPUs that are said to be elsewhere have cores there, not this machine's.
    return Capacity(num_gpus, cluster.num_cpus or (os.cpu_count() if cluster.num_gpus is None else None))


def _devices(trials: Sequence[tuple[str, Config]]) -> dict[str, str | None]:
    known = {key: compute_device(config) for key, config in {_place(config): config for _, config in trials}.items()}
    return {name: known[_place(config)] for name, config in trials}


def _place(config: Config) -> tuple[bool, str, str]:
    return config.engine.on_gpu, config.gpu.name, config.gpu.product


def _expecting(batch: Batch, seconds: Sequence[float | None]) -> Batch:
    steps = (step.expecting(each) for step, each in zip(batch.steps, seconds, strict=True))
    return replace(batch, steps=tuple(steps))


def _seconds(batch: Batch) -> float:
    """Of the steps that something is known of."""
    return sum(step.expected_s or 0.0 for step in batch.steps)


def _stage_cost(name: str, steps: Sequence[Step]) -> StageCost:
    known = [(step, step.expected_s) for step in steps if step.expected_s is not None]
    return StageCost(
        name=name,
        seconds=sum(seconds for _, seconds in known),
        gpu_hours=sum(step.resources.num_gpus * seconds for step, seconds in known) / 3600,
        num_unknown=len(steps) - len(known),
    )
