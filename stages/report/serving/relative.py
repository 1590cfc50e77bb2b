"""What a trial costs to serve beside its base, in one number for each way of serving, and on what that was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.measured import Measured, measured
from stages.report.config import ServingConfig, TrialRow
from stages.report.serving.results import Served, base_of, read_served, reduction_of, speedup_of


@dataclass(frozen=True, slots=True)
class Cost:
    """How many times the queries per dollar of its base a trial answers, at the prices of ``where``."""

    where: str
    alone: Measured | None = None  # one query at a time
    saturated: Measured | None = None

    @property
    def ranked_by(self) -> Measured | None:
        """The one that candidates are ranked by."""
        return self.saturated or self.alone

    @property
    def value(self) -> float | None:
        return None if self.ranked_by is None else self.ranked_by.value


def relative_costs(
    trials: Sequence[TrialRow], serving: ServingConfig | None, inputs: Mapping[str, Path]
) -> dict[str, Cost]:
    """By trial, of those that were served beside their base."""
    if serving is None:
        return {}
    served = [each for each in read_served(trials, serving, inputs) if each.points]
    found = {each.trial.name: _cost(each, base_of(each, served)) for each in served}
    return {name: cost for name, cost in found.items() if cost.value is not None}


def _cost(served: Served, base: Served | None) -> Cost:
    return Cost(_where(served), measured(reduction_of(served, base)), measured(speedup_of(served, base)))


def _where(served: Served) -> str:
    devices = dict.fromkeys(point.facts.device.product for point in served.points)
    num_gpus = max(point.facts.num_gpus for point in served.points)
    return f"{num_gpus or 1} × {' or '.join(devices)} at {served.hourly_usd:g} $/h"
