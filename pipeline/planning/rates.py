"""What steps took where they were measured, ``rates.yaml``, and what that says of a step that is like them."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

import yaml

CPU = "CPU"  # the device of models on processors
ELSEWHERE = "an endpoint"  # that of models behind somebody else's server
RECORDS = "files"  # where no model is asked any more


@dataclass(frozen=True, slots=True)
class Work:
    """What decides how long a step takes.

    ``device`` is a GPU's product, CPU, ELSEWHERE, RECORDS, or empty for work beside the models.
    """

    stage: str
    kind: str | None = ""  # None: not known
    task: str = ""
    device: str | None = ""  # None: not known
    num_parameters: int | None = None
    num_ranks: int = 1
    amounts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rate:
    """A row of the table; its file says what the fields are."""

    source: str
    stage: str
    kind: str = ""
    tasks: tuple[str, ...] = ()
    device: str = ""
    num_parameters: float | None = None
    fixed_s: float = 0.0
    each: tuple[tuple[str, float], ...] = ()
    sized_s: float = 0.0
    sized_each: tuple[tuple[str, float], ...] = ()

    def seconds(self, work: Work) -> float | None:
        """What the work takes by this row; None if it needs the model's size, which is not known."""
        fixed_s = self.fixed_s + _total(self.each, work)
        sized_s = self.sized_s + _total(self.sized_each, work)
        if not sized_s or self.num_parameters is None:
            return fixed_s
        if work.num_parameters is None:
            return None
        return fixed_s + work.num_parameters / self.num_parameters / work.num_ranks * sized_s

    def is_of(self, work: Work) -> bool:
        """Whether it was measured on work of this kind, wherever that was."""
        is_of_task = not self.tasks or any(fnmatchcase(work.task, pattern) for pattern in self.tasks)
        return (self.stage, self.kind) == (work.stage, work.kind) and is_of_task

    def is_of_device(self, device: str | None) -> bool:
        """Whether it was measured on such a device."""
        if not self.device or not device:
            return self.device == device
        return self.device.lower() in device.lower()


class Rates:
    """The rows, and for each kind of work the one that is nearest to it."""

    def __init__(self, rates: Sequence[Rate]) -> None:
        self._rates = rates
        self._found: dict[tuple[object, ...], Rate | None] = {}

    def nearest(self, work: Work) -> Rate | None:
        """Of the rows of such work: of its task before others, of its device before others, then of the nearest size.

        Of another device only where there is none of its own, so that what a store has measured can correct it.
        """
        key = (work.stage, work.kind, work.task, work.device, work.num_parameters)
        if key not in self._found:
            fitting = [rate for rate in self._rates if rate.is_of(work) and bool(rate.device) == (work.device != "")]
            self._found[key] = min(fitting, key=lambda rate: _distance(rate, work), default=None)
        return self._found[key]


def _distance(rate: Rate, work: Work) -> tuple[bool, bool, float]:
    sizes = (rate.num_parameters, work.num_parameters)
    apart = abs(math.log(sizes[0] / sizes[1])) if sizes[0] and sizes[1] else 0.0
    return not rate.is_of_device(work.device), not rate.tasks, apart


def _total(each: tuple[tuple[str, float], ...], work: Work) -> float:
    return sum(seconds * work.amounts.get(amount, 0.0) for amount, seconds in each)


@functools.cache
def measured_rates() -> Rates:
    """The table of this project."""
    text = (resources.files("pipeline.planning") / "rates.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    return Rates([_rate(row, content["sources"]) for row in content["rates"]])


def _rate(row: Mapping[str, Any], sources: Mapping[str, str]) -> Rate:
    pairs = {name: tuple(row[name].items()) for name in ("each", "sized_each") if name in row}
    return Rate(**{**row, **pairs, "tasks": tuple(row.get("tasks", ())), "source": sources[row["source"]]})
