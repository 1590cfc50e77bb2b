"""Run a plan's missing steps: on Ray, or one batch after the other in this process.  Both run the same code.

Ray is imported where it is used: plans and reruns with nothing to do must not wait for it.
"""

import contextlib
import os
import signal
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pipeline.batches import Batch
from pipeline.config import ClusterConfig, RunnerKind
from pipeline.errors import FailureClass, UserError, one_line
from pipeline.ledger import Ledger
from pipeline.outcome import Outcome, RunContext, Status
from pipeline.step import Resources, StepRef
from pipeline.store import Store
from pipeline.worker import run_batch

Outcomes = dict[StepRef, Outcome]
OnBatchDone = Callable[[Sequence[Outcome]], None]

LOCAL_START_ATTEMPTS = 3
# More would only lengthen every look at what is ready; workers never wait for the driver with so many in hand.
MAX_IN_FLIGHT = 1000
GIB = 2**30
CONNECT_WITHIN_S = 20.0
POLL_S = 1.0  # how soon a request to stop is seen


@dataclass(frozen=True, slots=True)
class Node:
    """What a node of the cluster offers."""

    num_cpus: float
    num_gpus: float
    memory_gib: float


class Runner(Protocol):
    """Runs batches, upstream ones first, and says how every step ended."""

    def run(self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone) -> Outcomes: ...


def make_runner(cluster: ClusterConfig, max_parallel: int | None = None) -> Runner:
    """The runner that the config names; it has at most ``max_parallel`` batches in flight."""
    return InlineRunner() if cluster.runner is RunnerKind.inline else RayRunner(cluster, max_parallel)


class InlineRunner:
    """One batch after the other, in this process."""

    def run(self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone) -> Outcomes:
        outcomes: Outcomes = {}
        for batch in batches:
            done = run_batch(batch, context, _upstream(batch, outcomes))
            outcomes |= {outcome.ref: outcome for outcome in done}
            on_done(done)
        return outcomes


class RayRunner:
    """Each batch is one Ray task, submitted when the batches before it are done; Ray places it and replaces workers."""

    def __init__(self, cluster: ClusterConfig, max_parallel: int | None) -> None:
        self._cluster = cluster
        self._limit = min(max_parallel or MAX_IN_FLIGHT, MAX_IN_FLIGHT)

    def run(self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone) -> Outcomes:
        # Under `uv run` Ray would build a second environment for its workers; they share this one, or their node's.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray

        with _own_signals():
            self._connect()
        _silence_deaths()
        try:
            nodes = _nodes()
            if not self._cluster.autoscales:
                for batch in batches:
                    _check_fits(batch, nodes)
            return _Submission(batches, replace(context, kills=True), nodes, self._limit).run(on_done)
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        import ray

        if self._cluster.address is None:
            _start_local(self._cluster.num_cpus)
            return
        try:
            _check_answers(self._cluster.address)
            ray.init(address=self._cluster.address, log_to_driver=False, configure_logging=False)
        except OSError as error:
            raise UserError(
                f"cluster.address={self._cluster.address}: no Ray cluster there ({one_line(error)})"
            ) from None


class _Submission:
    """The batches of one run: which wait, which are in flight, and how every step ended."""

    def __init__(self, batches: Sequence[Batch], context: RunContext, nodes: Sequence[Node], limit: int) -> None:
        self._context, self._nodes = context, nodes
        self._ledger = Ledger(context.open_store().storage)
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
        group = _placement_group(batch) if batch.resources.num_nodes > 1 else None
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


def _check_answers(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself goes on asking for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), CONNECT_WITHIN_S).close()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts, and then a driver that Slurm ends says nothing."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _not_run(batch: Batch, reason: str) -> list[Outcome]:
    return [Outcome(step.ref, Status.not_run, message=reason) for step in batch.steps]


def _start_local(num_cpus: int | None) -> None:
    """Start Ray on this machine.

    Ray gives its agents 15 s to come up and does not let one change that (ray-project/ray issue 65983); on a busy
    machine they may need more, and the second start finds their files in memory.
    """
    # What a step started must not outlive the worker that ran it, however that ended.  (Ray's other way, a subreaper,
    # ignores SIGCHLD in every worker and in this process, which breaks whoever waits for a child.)
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "true")
    import ray

    for attempt in range(1, LOCAL_START_ATTEMPTS + 1):
        try:
            # "local": never the cluster that somebody else runs on this machine.
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
            return
        except Exception as error:
            ray.shutdown()
            if attempt == LOCAL_START_ATTEMPTS:
                raise UserError(
                    f"a local Ray cluster did not start in {attempt} attempts ({one_line(error)}): free some CPU and "
                    "run again, or run without Ray: cluster=inline"
                ) from None


def _silence_deaths() -> None:
    """Keep Ray's ten lines for every dead worker off the live display; the ledger says what died and why.

    ``log_to_driver=False`` does not reach them, and Ray has no public way to.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def _remote(batch: Batch, context: RunContext, nodes: Sequence[Node], group: Any) -> Any:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    resources = _whole_node(batch.resources, nodes) if batch.resources.is_alone else batch.resources
    num_cpus = min(resources.num_cpus, max((node.num_cpus for node in nodes), default=resources.num_cpus))
    # In a placement group the engine's own workers take the GPUs, one bundle each; this task only drives them.
    strategy = group and PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    return ray.remote(run_batch).options(
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


def _whole_node(resources: Resources, nodes: Sequence[Node]) -> Resources:
    """Everything that the smallest node with enough GPUs offers, so that nothing runs beside it."""
    fitting = [node for node in nodes if node.num_gpus >= resources.num_gpus]
    if not fitting or resources.num_nodes > 1:
        return resources
    node = min(fitting, key=lambda node: (node.num_gpus, node.num_cpus))
    return replace(resources, num_cpus=node.num_cpus, num_gpus=node.num_gpus)


def _placement_group(batch: Batch) -> Any:
    """A bundle for each GPU, as vLLM's Ray executor wants them, on as few nodes as hold them."""
    from ray.util import placement_group

    resources = batch.resources
    first = {"GPU": 1.0, "CPU": resources.num_cpus}
    if resources.memory_gib is not None:
        first["memory"] = int(resources.memory_gib * GIB)
    return placement_group([first, *({"GPU": 1.0} for _ in range(int(resources.num_gpus) - 1))], strategy="PACK")


def _outcomes_of(ref: Any, batch: Batch, context: RunContext) -> list[Outcome]:
    import ray

    try:
        done: list[Outcome] = ray.get(ref)
        return done
    except ray.exceptions.RayError as error:
        store, message = context.open_store(), one_line(getattr(error, "cause", None) or error)
        return [_without_word(step.ref, store, context.run_id, message) for step in batch.steps]


def _without_word(ref: StepRef, store: Store, run_id: str, message: str) -> Outcome:
    """The outcome of a step whose batch died for good: what it published counts, the rest can be resubmitted."""
    if store.has(ref):
        return Outcome(ref, Status.succeeded)
    with contextlib.suppress(OSError):
        Ledger(store.storage).failed(ref, run_id, FailureClass.crash, message)
    return Outcome(ref, Status.failed, FailureClass.crash, message)


def _upstream(batch: Batch, outcomes: Outcomes) -> list[Outcome]:
    return [outcomes[ref] for ref in batch.upstream if ref in outcomes]


def _nodes() -> list[Node]:
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(node.get("CPU", 0.0), node.get("GPU", 0.0), node.get("memory", 0.0) / GIB) for node in found]


def _check_fits(batch: Batch, nodes: Sequence[Node]) -> None:
    """Refuse what no node could ever hold: Ray would let it wait for ever."""
    resources = batch.resources
    largest = max((node.num_gpus for node in nodes), default=0.0)
    roomiest_gib = max((node.memory_gib for node in nodes), default=0.0)
    if (resources.memory_gib or 0) > roomiest_gib:
        raise UserError(
            f"{batch.label} needs {resources.memory_gib:g} GiB of memory, but the cluster's largest node offers "
            f"{roomiest_gib:.1f}: lower cluster.stages.*.memory_gib, use a larger node, or set cluster.autoscales=true "
            "if nodes come when they are asked for"
        )
    if resources.num_nodes > 1:
        total = sum(node.num_gpus for node in nodes)
        if resources.num_gpus > total:
            raise UserError(
                f"{batch.label} needs {resources.num_gpus:g} GPUs, but the cluster has {total:g}: add nodes, or "
                "set cluster.autoscales=true if they come when they are asked for"
            )
    elif resources.num_gpus > largest:
        raise UserError(
            f"{batch.label} needs {resources.num_gpus:g} GPUs on one node, but the cluster's largest node has "
            f"{largest:g}: lower engine.tensor_parallel_size, spread it over nodes with engine.pipeline_parallel_size, "
            "use a larger node, or set cluster.autoscales=true if nodes come when they are asked for"
        )
    elif not any(_holds(node, resources) for node in nodes):
        raise UserError(
            f"{batch.label} needs {resources.num_gpus:g} GPUs and {resources.memory_gib or 0:g} GiB of memory on one "
            "node, but no node of the cluster has both: lower cluster.stages.*.memory_gib, or set "
            "cluster.autoscales=true if nodes come when they are asked for"
        )


def _holds(node: Node, resources: Resources) -> bool:
    return node.num_gpus >= resources.num_gpus and node.memory_gib >= (resources.memory_gib or 0)
