"""Which batch is next: of those that could run now, the one with the longest way to the end of the run behind it.

Repetitions take turns: none is before what could run of an earlier turn.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.planning.plan import Plan
from pipeline.running.batches import Batch, needs
from pipeline.steps.step import Resources

Seconds = Callable[[Batch], float]  # what a batch is expected to take; only how batches compare matters here


@dataclass(frozen=True, slots=True)
class Graph:
    """Batches by their index: how many each waits for, and which wait for it."""

    num_before: list[int]
    behind: list[list[int]]

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "Graph":
        """Of batches that each stand after those they need."""
        before = needs(batches)
        behind: list[list[int]] = [[] for _ in batches]
        for index in range(len(batches)):
            for upstream in sorted(before[index]):
                behind[upstream].append(index)
        return cls([len(before[index]) for index in range(len(batches))], behind)


def critical_paths(batches: Sequence[Batch], graph: Graph, seconds: Seconds) -> list[float]:
    """For each batch its own time, and that of the longest chain of batches that wait for it."""
    paths = [0.0] * len(batches)
    for index in reversed(range(len(batches))):
        paths[index] = seconds(batches[index]) + max((paths[later] for later in graph.behind[index]), default=0.0)
    return paths


def by_size(plan: Plan) -> Seconds:
    """The plain measure where nothing better is known: documents times the weights that answer them, in no unit.

    A step without documents counts as one document.
    """
    weights = {name: _weights_gib(plan, name) for name in plan.trials}
    return lambda batch: sum(max(step.num_documents, 1) * weights.get(step.trial, 1.0) for step in batch.steps)


def _weights_gib(plan: Plan, trial: str) -> float:
    return plan.trials[trial].model_gib or 1.0


class Ready:
    """The batches that could run now, by what they take: where one does not fit, none like it does."""

    def __init__(self, batches: Sequence[Batch], urgency: Sequence[float]) -> None:
        self._batches, self._urgency = batches, urgency
        self._families = [batch.family for batch in batches]
        self._queues: dict[Resources, list[tuple[int, float, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, index: int) -> None:
        """One more; the most urgent comes first, and of equals the one that the plan has first."""
        queue = self._queues.setdefault(self._batches[index].resources, [])
        heapq.heappush(queue, (self._batches[index].turn, -self._urgency[index], index))

    def shapes(self) -> list[Resources]:
        """What the batches take, that of the most urgent one first."""
        return sorted(self._queues, key=lambda shape: self._queues[shape][0])

    def peek(self, shape: Resources) -> int:
        """The most urgent batch of the shape, which stays."""
        return self._queues[shape][0][-1]

    def pop(self, shape: Resources) -> int:
        """The most urgent batch of the shape."""
        index = heapq.heappop(self._queues[shape])[-1]
        if not self._queues[shape]:
            del self._queues[shape]
        return index

    def pop_family(self, index: int, most: int) -> list[int]:
        """Up to ``most`` others of the family of a batch that was popped, the most urgent first."""
        shape, family = self._batches[index].resources, self._families[index]
        queue = self._queues.get(shape, []) if family is not None else []
        found = sorted(entry for entry in queue if self._families[entry[-1]] == family)[:most]
        if found:
            self._queues[shape] = [entry for entry in queue if entry not in found]
            heapq.heapify(self._queues[shape])
            if not self._queues[shape]:
                del self._queues[shape]
        return [entry[-1] for entry in found]

    def drained(self) -> Iterator[int]:
        """Every batch, also those that become ready meanwhile."""
        while self._queues:
            yield self.pop(self.shapes()[0])

    def drained_of(self, shape: Resources) -> Iterator[int]:
        """Every batch of the shape."""
        while shape in self._queues:
            yield self.pop(shape)


def cpus_per_gpu(waiting: Mapping[Resources, int]) -> float:
    """CPUs that a GPU's work may want beside it, of the batches that are still to come, counted by what they take."""
    shares = (each.num_cpus / each.num_gpus for each, number in waiting.items() if number and each.num_gpus)
    return max(shares, default=0.0)
