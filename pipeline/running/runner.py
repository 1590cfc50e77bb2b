"""Run a plan's missing steps: on Ray, or one batch after the other in this process.  Both run the same code.

Ray is imported where it is used: plans and reruns with nothing to do must not wait for it.
"""

import contextlib
import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.errors import FailureClass
from pipeline.running.apart import run_apart
from pipeline.running.batches import Batch
from pipeline.running.connection import connect
from pipeline.running.outcome import Outcome, RunContext, Status
from pipeline.running.placement import Node, check_fits, cluster_nodes, placement_group_of, whole_node
from pipeline.running.worker import run_batch
from pipeline.steps.step import StepRef
from pipeline.store.store import Store
from stages.errors import one_line
from stages.units import GIB

Outcomes = dict[StepRef, Outcome]
OnBatchDone = Callable[[Sequence[Outcome]], None]
OnReady = Callable[[], None]

# More would only lengthen every look at what is ready; workers never wait for the driver with so many in hand.
MAX_IN_FLIGHT = 1000
POLL_S = 1.0  # how soon a request to stop is seen


class Runner(Protocol):
    """Runs batches, upstream ones first, and says how every step ended; ``on_ready``: nothing was refused."""

    def run(
        self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone, on_ready: OnReady = ...
    ) -> Outcomes: ...


def make_runner(cluster: ClusterConfig, max_parallel: int | None = None) -> Runner:
    """The runner that the config names; it has at most ``max_parallel`` batches in flight."""
    return InlineRunner() if cluster.runner is RunnerKind.inline else RayRunner(cluster, max_parallel)


class InlineRunner:
    """One batch after the other, in this process; each that computes on GPUs in a process of its own."""

    def run(
        self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone, on_ready: OnReady = lambda: None
    ) -> Outcomes:
        on_ready()
        outcomes: Outcomes = {}
        for batch in batches:
            done = _done_inline(batch, context, _upstream(batch, outcomes))
            outcomes |= {outcome.ref: outcome for outcome in done}
            on_done(done)
        return outcomes


def _done_inline(batch: Batch, context: RunContext, upstream: list[Outcome]) -> list[Outcome]:
    if not batch.resources.num_gpus:
        return run_batch(batch, context, upstream)
    done = run_apart(batch, context, upstream)
    return _without_word(batch, context, "the process that ran it died again and again") if done is None else done


class RayRunner:
    """Each batch is one Ray task, submitted when the batches before it are done; Ray places it and replaces workers."""

    def __init__(self, cluster: ClusterConfig, max_parallel: int | None) -> None:
        self._cluster = cluster
        self._limit = min(max_parallel or MAX_IN_FLIGHT, MAX_IN_FLIGHT)

    def run(
        self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone, on_ready: OnReady = lambda: None
    ) -> Outcomes:
        # Under `uv run` Ray would build a second environment for its workers; they share this one, or their node's.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray

        connect(self._cluster.address, self._cluster.num_cpus)
        try:
            nodes = cluster_nodes()
            if not self._cluster.autoscales:
                for batch in batches:
                    check_fits(batch, nodes)
            on_ready()
            return _Submission(batches, replace(context, kills=True), nodes, self._limit).run(on_done)
        finally:
            ray.shutdown()


class _Submission:
    """The batches of one run: which wait, which are in flight, and how every step ended."""

    def __init__(self, batches: Sequence[Batch], context: RunContext, nodes: Sequence[Node], limit: int) -> None:
        self._context, self._nodes = context, nodes
        self._ledger = context.store.open().ledger
        self._limit = limit
        owner = {step.ref: index for index, batch in enumerate(batches) for step in batch.steps}
        before = [{owner[ref] for ref in batch.upstream if ref in owner} for batch in batches]
        self._batches = batches
        self._num_before = [len(indices) for indices in before]
        self._behind: dict[int, list[int]] = defaultdict(list)
        for index, indices in enumerate(before):
            for upstream in indices:
                self._behind[upstream].append(index)
        self._ready = deque(index for index, number in enumerate(self._num_before) if number == 0)
        self._in_flight: dict[Any, tuple[int, Any]] = {}
        self._outcomes: Outcomes = {}

    def run(self, on_done: OnBatchDone) -> Outcomes:
        import ray

        while self._ready or self._in_flight:
            reason = self._ledger.stop_reason(self._context.run_id)
            while self._ready and (reason or len(self._in_flight) < self._limit):
                index = self._ready.popleft()
                if reason:
                    self._take_in(index, _not_run(self._batches[index], reason), on_done)
                else:
                    self._submit(index)
            if self._in_flight:
                done, _ = ray.wait(list(self._in_flight), num_returns=1, timeout=POLL_S, fetch_local=False)
                for ref in done:
                    self._collect(ref, on_done)
        return self._outcomes

    def _submit(self, index: int) -> None:
        batch = self._batches[index]
        group = placement_group_of(batch) if batch.resources.num_nodes > 1 else None
        ref = _remote(batch, self._context, self._nodes, group).remote(
            batch, self._context, _upstream(batch, self._outcomes)
        )
        self._in_flight[ref] = index, group

    def _collect(self, ref: Any, on_done: OnBatchDone) -> None:
        index, group = self._in_flight.pop(ref)
        if group is not None:
            from ray.util import remove_placement_group

            remove_placement_group(group)
        self._take_in(index, _outcomes_of(ref, self._batches[index], self._context), on_done)

    def _take_in(self, index: int, done: Sequence[Outcome], on_done: OnBatchDone) -> None:
        self._outcomes |= {outcome.ref: outcome for outcome in done}
        for behind in self._behind[index]:
            self._num_before[behind] -= 1
            if self._num_before[behind] == 0:
                self._ready.append(behind)
        on_done(done)


def _not_run(batch: Batch, reason: str) -> list[Outcome]:
    return [Outcome(step.ref, Status.not_run, message=reason) for step in batch.steps]


def _remote(batch: Batch, context: RunContext, nodes: Sequence[Node], group: Any) -> Any:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    resources = whole_node(batch.resources, nodes) if batch.resources.is_alone else batch.resources
    num_cpus = min(resources.num_cpus, max((node.num_cpus for node in nodes), default=resources.num_cpus))
    # In a placement group the engine's own workers take the GPUs, one bundle each; this task only drives them.
    strategy = group and PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    # The end of its process gives back a GPU's memory; zero lets a process take the next batch.
    function = ray.remote(max_calls=1 if resources.num_gpus else 0)(run_batch)
    return function.options(
        name=batch.label,
        num_cpus=num_cpus,
        num_gpus=0 if group else resources.num_gpus,
        memory=int(resources.memory_gib * GIB) if resources.memory_gib is not None else None,
        scheduling_strategy=strategy,
        # A dead worker is replaced; run_batch counts deaths in the ledger and sets the guilty step aside.
        max_retries=context.max_attempts * len(batch.steps),
        # Threads are fixed by the batch, so that a node's size does not move a floating-point sum.  They soon sleep
        # when they wait: on a shared core spinning costs more than the work (33 decode steps 38 s, without it 3 s).
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(max(1, int(num_cpus))), "GOMP_SPINCOUNT": "1000"}},
    )


def _outcomes_of(ref: Any, batch: Batch, context: RunContext) -> list[Outcome]:
    import ray

    try:
        done: list[Outcome] = ray.get(ref)
        return done
    except ray.exceptions.RayError as error:
        return _without_word(batch, context, one_line(getattr(error, "cause", None) or error))


def _without_word(batch: Batch, context: RunContext, message: str) -> list[Outcome]:
    """The outcomes of a batch that died for good: what it published counts, the rest can be resubmitted."""
    store = context.store.open()
    return [_last_known(step.ref, store, context.run_id, message) for step in batch.steps]


def _last_known(ref: StepRef, store: Store, run_id: str, message: str) -> Outcome:
    if store.has(ref):
        return Outcome(ref, Status.succeeded)
    with contextlib.suppress(OSError):
        store.ledger.failed(ref, run_id, FailureClass.crash, message)
    return Outcome(ref, Status.failed, FailureClass.crash, message)


def _upstream(batch: Batch, outcomes: Outcomes) -> list[Outcome]:
    return [outcomes[ref] for ref in batch.upstream if ref in outcomes]
