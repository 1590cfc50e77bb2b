"""How long a run will still take: what was expected of its steps, corrected by how long those took that have ended."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.running.batches import Batch
from pipeline.running.schedule import Capacity, makespan_s
from pipeline.steps.step import Step, StepRef


class Left(NamedTuple):
    """``is_floor``: there are steps of which nothing is known, and which are not in it."""

    seconds: float
    is_floor: bool


class TimeLeft:
    """By stage, what steps of this run took against what was expected of them, or per document where nothing was."""

    def __init__(self, batches: Sequence[Batch], end_s: Sequence[float], capacity: Capacity) -> None:
        self._batches, self._end_s, self._capacity = batches, end_s, capacity
        self._took_s: dict[tuple[str, bool], float] = defaultdict(float)  # by stage, and whether it was expected
        self._weight: dict[tuple[str, bool], float] = defaultdict(float)
        self._most_gpus = 0.0

    def note(self, step: Step, seconds: float) -> None:
        """Take in how long a step took."""
        key = _key(step)
        self._took_s[key] += seconds
        self._weight[key] += _weight(step)

    def left(self, waiting: Mapping[int, Sequence[Step]], running_s: Mapping[StepRef, float]) -> Left | None:
        """Of the steps of each batch that have not ended, some of which run since so many seconds; None: no idea."""
        open_batches = [index for index, steps in waiting.items() if steps]
        known = {index: [self._step_s(step, running_s) for step in waiting[index]] for index in open_batches}
        flat = [seconds for found in known.values() for seconds in found]
        if flat and all(seconds is None for seconds in flat):
            return None
        self._most_gpus = max(self._most_gpus, self._gpus_of(open_batches, running_s))
        seconds = [sum(each or 0.0 for each in known[index]) + self._end_s[index] for index in open_batches]
        makespan = makespan_s([self._batches[index] for index in open_batches], seconds, self._room())
        return Left(makespan, any(each is None for each in flat))

    def _step_s(self, step: Step, running_s: Mapping[StepRef, float]) -> float | None:
        key = _key(step)
        if self._weight[key] > 0:
            seconds = self._took_s[key] / self._weight[key] * _weight(step)
        elif step.expected_s is not None:
            seconds = step.expected_s
        else:
            return None
        return max(0.0, seconds - running_s.get(step.ref, 0.0))

    def _gpus_of(self, indices: Sequence[int], running_s: Mapping[StepRef, float]) -> float:
        busy = (i for i in indices if any(step.ref in running_s for step in self._batches[i].steps))
        return sum(self._batches[index].resources.num_gpus for index in busy)

    def _room(self) -> Capacity:
        """Of a cluster whose size nobody said, as many GPUs as were in use at once."""
        if self._capacity.lanes or self._capacity.num_gpus is not None:
            return self._capacity
        needed = max((batch.resources.num_gpus for batch in self._batches), default=0.0)
        return replace(self._capacity, num_gpus=max(self._most_gpus, needed))


def _key(step: Step) -> tuple[str, bool]:
    return step.stage.name, step.expected_s is not None


def _weight(step: Step) -> float:
    return (step.num_documents or 1) if step.expected_s is None else step.expected_s
