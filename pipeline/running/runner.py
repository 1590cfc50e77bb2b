"""Run a plan's missing steps: on Ray, or without it (``inline``).  Both run the same code.

Ray is imported where it is used: plans and reruns with nothing to do must not wait for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.running.batches import Batch
from pipeline.running.connection import connect
from pipeline.running.inline import InlineRunner
from pipeline.running.nodes import Nodes, Tell
from pipeline.running.order import Seconds
from pipeline.running.outcome import OnBatchDone, Outcomes, RunContext
from pipeline.running.placement import Patience, check_fits
from pipeline.running.room import Room
from pipeline.running.submission import MAX_IN_FLIGHT, Submission

OnReady = Callable[[], None]


class Runner(Protocol):
    """Runs batches, upstream ones first, and says how every step ended; ``on_ready``: nothing was refused."""

    def run(
        self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone, on_ready: OnReady = ...
    ) -> Outcomes: ...


def make_runner(
    cluster: ClusterConfig,
    max_parallel: int | None = None,
    tell: Tell = print,
    seconds: Seconds = lambda batch: len(batch.steps),
) -> Runner:
    """The runner that the config names; at most ``max_parallel`` batches in flight, ``tell`` hears of the cluster.

    ``seconds`` that a batch may take say which of those that could run is more urgent.
    """
    if cluster.runner is RunnerKind.inline:
        return InlineRunner()
    return RayRunner(cluster, max_parallel, tell, seconds)


class RayRunner:
    """Each batch is one Ray task, submitted when those before it are done and there is room; Ray replaces workers."""

    def __init__(self, cluster: ClusterConfig, max_parallel: int | None, tell: Tell, seconds: Seconds) -> None:
        self._cluster, self._tell, self._seconds = cluster, tell, seconds
        self._limit = min(max_parallel or MAX_IN_FLIGHT, MAX_IN_FLIGHT)

    def run(
        self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone, on_ready: OnReady = lambda: None
    ) -> Outcomes:
        connect(self._cluster.address, self._cluster.num_cpus)
        import ray

        try:
            nodes, cluster = Nodes(self._tell), self._cluster
            if not cluster.autoscales:
                for batch in batches:
                    check_fits(batch, nodes.alive)
            on_ready()
            patience = Patience(None if cluster.autoscales else cluster.wait_for_nodes_s, self._tell)
            room, context = Room(nodes.alive, cluster.autoscales), replace(context, kills=True)
            return Submission(batches, context, nodes, room, patience, self._limit, self._seconds).run(on_done)
        finally:
            ray.shutdown()
