"""Run a plan's missing steps without Ray: those without GPUs here, beside them those on GPUs, one batch at a time."""

import heapq
from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter

from pipeline.running.apart import GpuLane
from pipeline.running.batches import Batch, in_families, needs
from pipeline.running.outcome import OnBatchDone, Outcome, Outcomes, RunContext, upstream_of
from pipeline.running.submission import without_word
from pipeline.running.worker import run_batch
from pipeline.steps.step import Step

POLL_S = 1.0  # how soon a request to stop is seen

_Place = tuple[int, int]  # of a batch that is ready among the others: its turn and its index


class InlineRunner:
    """What needs no GPU runs in this process, one batch after the other, and beside it one batch on GPUs.

    While a batch runs that must be alone, nothing else does.
    """

    def run(
        self,
        batches: Sequence[Batch],
        context: RunContext,
        on_done: OnBatchDone,
        on_ready: Callable[[], None] = lambda: None,
    ) -> Outcomes:
        on_ready()
        with GpuLane(context) as lane:
            return _Run(in_families(batches), context, lane, on_done).outcomes()


class _Run:
    def __init__(self, batches: Sequence[Batch], context: RunContext, lane: GpuLane, on_done: OnBatchDone) -> None:
        self._batches, self._context, self._lane, self._on_done = batches, context, lane, on_done
        self._ledger = context.store.open().ledger
        self._outcomes: Outcomes = {}
        self._sorter = TopologicalSorter(needs(batches))
        self._sorter.prepare()
        self._on_gpu: list[_Place] = []  # ready ones, as heaps
        self._here: list[_Place] = []
        self._in_lane: int | None = None
        self._begun: set[int] = set()

    def outcomes(self) -> Outcomes:
        if (first := self._expected()) is not None:
            self._lane.expect(first)
        while self._sorter.is_active():
            self._note_ready()
            self._fill_lane()
            if self._here and not self._is_lane_alone:
                _, index = heapq.heappop(self._here)
                self._done(index, run_batch(self._batches[index], self._context, self._upstream(index)))
            self._look_into_lane(wait_s=0 if self._here and not self._is_lane_alone else POLL_S)
        return self._outcomes

    @property
    def _is_lane_alone(self) -> bool:
        return self._in_lane is not None and self._batches[self._in_lane].resources.is_alone

    def _note_ready(self) -> None:
        for index in self._sorter.get_ready():
            ready = self._on_gpu if self._batches[index].resources.num_gpus else self._here
            heapq.heappush(ready, self._place(index))

    def _fill_lane(self) -> None:
        if self._ledger.stop_reason(self._context.run_id):  # said for each step, and no process need start to say it
            self._here += self._on_gpu
            self._on_gpu.clear()
            heapq.heapify(self._here)
        elif self._in_lane is None and self._on_gpu:
            _, self._in_lane = heapq.heappop(self._on_gpu)
            self._begun.add(self._in_lane)
            self._lane.begin(self._batches[self._in_lane], self._upstream(self._in_lane), self._expected())

    def _expected(self) -> Step | None:
        """The first step of the batch that will probably follow: what it needs may be what is under way."""
        later = [self._place(index) for index, batch in enumerate(self._batches) if batch.resources.num_gpus]
        return next((self._batches[index].steps[0] for _, index in sorted(later) if index not in self._begun), None)

    def _place(self, index: int) -> _Place:
        """Turn by turn, and within one in the plan's order."""
        return self._batches[index].turn, index

    def _look_into_lane(self, wait_s: float) -> None:
        if self._in_lane is None:
            return
        done = self._lane.outcomes(wait_s)
        if done is not None:
            index, self._in_lane = self._in_lane, None
            batch = self._batches[index]
            self._done(index, without_word(batch, self._context, done) if isinstance(done, str) else done)

    def _done(self, index: int, done: Sequence[Outcome]) -> None:
        self._outcomes |= {outcome.ref: outcome for outcome in done}
        self._sorter.done(index)
        self._on_done(done)

    def _upstream(self, index: int) -> list[Outcome]:
        return upstream_of(self._batches[index].upstream, self._outcomes)
