"""How long batches take side by side: list scheduling, the longest chain of batches first.  Pure."""

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.running.batches import Batch
from pipeline.running.order import Graph, critical_paths

Amounts = tuple[float, float]  # of GPUs and processors


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is at once; None: no limit is known.  In ``lanes`` one batch on GPUs, and beside it one without."""

    num_gpus: float | None = None
    num_cpus: float | None = None
    lanes: bool = False

    def room(self) -> Amounts:
        return (1.0, 1.0) if self.lanes else (_limit(self.num_gpus), _limit(self.num_cpus))

    def taken_by(self, batch: Batch) -> Amounts:
        """Never more than there is: what does not fit whole is not run at all, and that is said elsewhere."""
        asked = batch.resources
        if self.lanes:
            return (1.0, 0.0) if asked.num_gpus else (0.0, 1.0)
        num_gpus, num_cpus = self.room()
        return min(asked.num_gpus, num_gpus), min(asked.num_cpus, num_cpus)


def _limit(number: float | None) -> float:
    return math.inf if number is None else number


def makespan_s(batches: Sequence[Batch], seconds: Sequence[float], capacity: Capacity) -> float:
    """Seconds until the last of the batches has ended; each stands behind those of them that it needs."""
    return _Schedule(batches, seconds, capacity).run()


class _Schedule:
    """Batches that wait, by what they occupy, those with the longest chain behind them first."""

    def __init__(self, batches: Sequence[Batch], seconds: Sequence[float], capacity: Capacity) -> None:
        self._seconds = seconds
        self._takes = [capacity.taken_by(batch) for batch in batches]
        self._free = capacity.room()
        graph = Graph.of(batches)
        self._num_before, self._behind = graph.num_before, graph.behind
        own_s = {batch.steps[0].ref: each for batch, each in zip(batches, seconds, strict=True)}
        self._chain_s = critical_paths(batches, graph, lambda batch: own_s[batch.steps[0].ref])
        self._ready: dict[Amounts, list[tuple[float, int]]] = defaultdict(list)
        self._running: list[tuple[float, int]] = []

    def run(self) -> float:
        now_s = 0.0
        for index, number in enumerate(self._num_before):
            if number == 0:
                self._wait(index)
        self._start(now_s)
        while self._running:
            now_s, index = heapq.heappop(self._running)
            self._end(index)
            self._start(now_s)
        return now_s

    def _wait(self, index: int) -> None:
        heapq.heappush(self._ready[self._takes[index]], (-self._chain_s[index], index))

    def _start(self, now_s: float) -> None:
        while fitting := [ready for takes, ready in self._ready.items() if ready and self._fits(takes)]:
            _, index = heapq.heappop(min(fitting))
            self._free = _sum(self._free, self._takes[index], -1)
            heapq.heappush(self._running, (now_s + self._seconds[index], index))

    def _fits(self, takes: Amounts) -> bool:
        return all(free >= taken - 1e-9 for free, taken in zip(self._free, takes, strict=True))

    def _end(self, index: int) -> None:
        self._free = _sum(self._free, self._takes[index], 1)
        for behind in self._behind[index]:
            self._num_before[behind] -= 1
            if self._num_before[behind] == 0:
                self._wait(behind)


def _sum(free: Amounts, taken: Amounts, sign: int) -> Amounts:
    return free[0] + sign * taken[0], free[1] + sign * taken[1]
