"""The batches of one run on Ray: which wait, which are in flight, and how every step ended."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import FailureClass
from pipeline.running.batches import Batch, together
from pipeline.running.gpu_worker import run_on_gpus
from pipeline.running.nodes import NODE_DIED, ClusterLostError, Nodes, blamed, this_node
from pipeline.running.order import Graph, Ready, Seconds, cpus_per_gpu, critical_paths
from pipeline.running.outcome import OnBatchDone, Outcome, Outcomes, RunContext, Status, upstream_of
from pipeline.running.placement import Patience, lacking, placement_group_of
from pipeline.running.room import Place, Room
from pipeline.running.worker import ProcessUsedUpError, run_batch
from pipeline.steps.step import Step, StepRef
from pipeline.store.store import Store
from stages.errors import one_line
from stages.units import GIB

# More would only lengthen every look at what is ready; workers never wait for the driver with so many in hand.
MAX_IN_FLIGHT = 1000
POLL_S = 1.0  # how soon a request to stop is seen


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch that is in flight: where it was sent, and its placement group if it has one."""

    index: int
    place: Place
    group: Any


class Submission:
    """Submits batches when those before them are done and there is room, the most urgent first.

    Watches that the cluster can take what waits.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        context: RunContext,
        nodes: Nodes,
        room: Room,
        patience: Patience,
        limit: int,
        seconds: Seconds,
    ) -> None:
        import ray

        self._context, self._nodes, self._room, self._patience = context, nodes, room, patience
        # Made once: each is sent to the head, for which Ray waits however long it is silent.  An engine that is spread
        # over nodes is driven from Ray's own process, whose end gives back the GPUs' memory.
        self._on_gpus, self._elsewhere = ray.remote(run_on_gpus), ray.remote(run_batch)
        self._over_nodes = ray.remote(max_calls=1)(run_batch)
        self._store = context.store.open()
        self._ledger = self._store.ledger
        self._limit = limit
        self._batches = list(batches)
        self._joined: dict[int, list[int]] = {}  # the others that are part of a batch by now
        self._num_legs = Counter(batch.resources for batch in batches if batch.steps[0].stage.sessions)
        graph = Graph.of(batches)
        self._num_before, self._behind = graph.num_before, graph.behind
        self._to_come = Counter(batch.resources for batch in batches)  # neither in flight nor done
        self._ready = Ready(batches, critical_paths(batches, graph, seconds))
        for index, number in enumerate(self._num_before):
            if number == 0:
                self._ready.add(index)
        self._in_flight: dict[Any, _Sent] = {}
        self._outcomes: Outcomes = {}

    def run(self, on_done: OnBatchDone) -> Outcomes:
        reason = None
        while self._ready or self._in_flight:
            try:
                reason = reason or self._ledger.stop_reason(self._context.run_id)
                self._submit_ready(reason, on_done)
                self._collect_done(on_done)
                if self._nodes.look():
                    self._look_at_waiting(on_done)
            except ClusterLostError as error:
                reason = str(error)
                self._give_up(reason, on_done)
        return self._outcomes

    def _submit_ready(self, reason: str | None, on_done: OnBatchDone) -> None:
        if reason:
            self._leave(self._ready.drained(), reason, on_done)
        while len(self._in_flight) < self._limit and (found := self._next()):
            self._submit(*found)

    def _next(self) -> tuple[int, Place] | None:
        """The most urgent batch for which there is room."""
        self._room.reopen()
        self._room.cpus_per_gpu = cpus_per_gpu(self._to_come)
        for shape in self._ready.shapes():
            if place := self._room.place(shape):
                return self._with_family(self._ready.pop(shape)), place
            self._room.close_for(shape)
        return None

    def _with_family(self, index: int) -> int:
        """Let others of its family that are ready follow the batch in its session.

        Not more than its part of what there is for so many places: a start costs less than a GPU that has nothing to
        do.  Those that are not ready yet are waited for by nobody.
        """
        shape = self._batches[index].resources
        its_part = math.ceil(self._num_legs[shape] / self._room.num_places(shape))
        others = self._ready.pop_family(index, max(0, its_part - 1))
        if others:
            self._to_come[shape] -= len(others)
            self._batches[index] = together([self._batches[each] for each in (index, *others)])
            self._joined.setdefault(index, []).extend(others)
        return index

    def _submit(self, index: int, place: Place) -> None:
        batch = self._batches[index]
        self._to_come[batch.resources] -= 1
        group = placement_group_of(place.asked) if place.asked.num_nodes > 1 else None
        work = (batch, self._context, upstream_of(batch.upstream, self._outcomes))
        options = _options(batch, self._context, place, group)
        if group is not None:
            ref = self._over_nodes.options(**options).remote(*work)
        elif batch.resources.num_gpus:
            ref = self._on_gpus.options(**options).remote(*work, self._expected())
        else:
            ref = self._elsewhere.options(**options).remote(*work)
        self._in_flight[ref] = _Sent(index, place, group)

    def _expected(self) -> Step | None:
        """A step of the GPU batch that will probably be next: the most urgent one of those that are still to come."""
        to_come = (shape for shape in self._ready.shapes() if shape.num_gpus)
        if (shape := next(to_come, None)) is not None:
            return self._batches[self._ready.peek(shape)].steps[0]
        waiting = (batch for batch, number in zip(self._batches, self._num_before, strict=True) if number)
        return next((batch.steps[0] for batch in waiting if batch.resources.num_gpus), None)

    def _leave(self, indices: Iterable[int], reason: str, on_done: OnBatchDone) -> None:
        """End ready batches without running them."""
        for index in indices:
            self._to_come[self._batches[index].resources] -= 1
            self._take_in(index, _not_run(self._batches[index], reason, self._store), on_done)

    def _collect_done(self, on_done: OnBatchDone) -> None:
        import ray

        if not self._in_flight:
            time.sleep(POLL_S if self._ready else 0)  # for a node
            return
        done, _ = ray.wait(list(self._in_flight), num_returns=1, timeout=POLL_S, fetch_local=False)
        for ref in done:
            outcomes = _outcomes_of(ref, self._batches[self._in_flight[ref].index], self._context)
            self._take_in(self._landed(ref), outcomes, on_done)

    def _look_at_waiting(self, on_done: OnBatchDone) -> None:
        """What no node can take any more waits for one, for a while; what another kind of node can is sent there."""
        nodes = self._nodes.alive
        if self._nodes.lost:
            self._store.refresh()
            refs = [step.ref for sent in self._in_flight.values() for step in self._batches[sent.index].steps]
            self._ledger.forgive(refs, self._context.run_id, {node.node_id for node in nodes})
        self._room.update(nodes)
        in_flight = [self._batches[sent.index].resources for sent in self._in_flight.values()]
        self._patience.look([*in_flight, *self._ready.shapes()], nodes)
        for shape in self._ready.shapes():
            if verdict := self._patience.verdict(shape):
                self._leave(self._ready.drained_of(shape), verdict, on_done)
        for ref, sent in list(self._in_flight.items()):
            batch = self._batches[sent.index]
            if verdict := self._patience.verdict(batch.resources):
                self._take_in(self._recalled(ref), _not_run(batch, verdict, self._store), on_done)
            elif lacking(sent.place.asked, nodes) and not lacking(batch.resources, nodes):
                self._to_come[batch.resources] += 1
                self._ready.add(self._recalled(ref))

    def _recalled(self, ref: Any) -> int:
        """Take a batch that no node has begun out of flight."""
        import ray

        ray.cancel(ref, force=True)
        return self._landed(ref)

    def _landed(self, ref: Any) -> int:
        sent = self._in_flight.pop(ref)
        self._room.give_back(sent.place)
        if sent.group is not None:
            from ray.util import remove_placement_group

            remove_placement_group(sent.group)
        return sent.index

    def _give_up(self, reason: str, on_done: OnBatchDone) -> None:
        """The cluster is gone, and with it what ran there: no step is to blame."""
        self._ledger.lose(self._context.run_id)
        self._store.refresh()
        lost = [sent.index for sent in self._in_flight.values()]
        self._in_flight.clear()
        for index in lost:
            self._take_in(index, _not_run(self._batches[index], reason, self._store), on_done)

    def _take_in(self, index: int, done: Sequence[Outcome], on_done: OnBatchDone) -> None:
        self._outcomes |= {outcome.ref: outcome for outcome in done}
        for ended in (index, *self._joined.pop(index, ())):
            for behind in self._behind[ended]:
                self._num_before[behind] -= 1
                if self._num_before[behind] == 0:
                    self._ready.add(behind)
        on_done(done)


def _not_run(batch: Batch, reason: str, store: Store) -> list[Outcome]:
    """A batch that ends before its time: what it has published counts."""
    return [
        Outcome(step.ref, Status.succeeded)
        if store.has(step.ref)
        else Outcome(step.ref, Status.not_run, message=reason)
        for step in batch.steps
    ]


def _options(batch: Batch, context: RunContext, place: Place, group: Any) -> dict[str, Any]:
    asked = place.asked
    # Threads are fixed by the batch, so that a node's size does not move a floating-point sum.  They soon sleep when
    # they wait: on a shared core spinning costs more than the work (33 decode steps 38 s, without it 3 s).
    threads = {
        "OMP_NUM_THREADS": str(max(1, int(batch.resources.num_cpus), int(asked.num_cpus))),
        "GOMP_SPINCOUNT": "1000",
    }
    return {
        "name": batch.label,
        "num_cpus": asked.num_cpus,
        "num_gpus": 0 if group else asked.num_gpus,
        "memory": int(asked.memory_gib * GIB) if asked.memory_gib is not None else None,
        "scheduling_strategy": _strategy(place, group),
        # A dead worker is replaced; run_batch counts deaths in the ledger and sets the guilty step aside.
        "max_retries": context.max_attempts * len(batch.steps),
        "retry_exceptions": [ProcessUsedUpError],
        "runtime_env": {"env_vars": threads},
    }


def _strategy(place: Place, group: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

    if group is not None:
        # The engine's own workers take the GPUs, one bundle each; this task only drives them.
        return PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    if place.node_id is None:
        return None
    # Where somebody else's work has taken the room meanwhile, any node that has some will do.
    return NodeAffinitySchedulingStrategy(place.node_id, soft=True, _spill_on_unavailable=True)


def _outcomes_of(ref: Any, batch: Batch, context: RunContext) -> list[Outcome]:
    import ray

    try:
        done: list[Outcome] | str = ray.get(ref)
        return without_word(batch, context, done) if isinstance(done, str) else done
    except ray.exceptions.LocalRayletDiedError:
        raise ClusterLostError(NODE_DIED) from None
    except ray.exceptions.RayError as error:
        return without_word(batch, context, one_line(getattr(error, "cause", None) or error))


def without_word(batch: Batch, context: RunContext, message: str) -> list[Outcome]:
    """How the steps of a batch ended whose workers died: one that killed them has failed, one never begun has not."""
    store = context.store.open()
    return [_last_known(step.ref, store, context.run_id, message) for step in batch.steps]


def _last_known(ref: StepRef, store: Store, run_id: str, message: str) -> Outcome:
    if store.has(ref):
        return Outcome(ref, Status.succeeded)
    history = store.ledger.history(ref, run_id)
    if history.failure is not None:
        return Outcome(ref, Status.failed, *history.failure)
    if not blamed(history.deaths, this_node()):
        return Outcome(ref, Status.not_run, message=message)
    with contextlib.suppress(OSError):
        store.ledger.failed(ref, run_id, FailureClass.crash, message)
    return Outcome(ref, Status.failed, FailureClass.crash, message)
