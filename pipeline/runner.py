"""Run a plan's missing steps: on Ray, or one batch after the other in this process.  Both run the same code.

Ray is imported where it is used: plans and reruns with nothing to do must not wait for it.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from pipeline.config import ClusterConfig, RunnerKind
from pipeline.errors import FailureClass, UserError, one_line
from pipeline.plan import Batch
from pipeline.step import StepRef
from pipeline.store import Store
from pipeline.worker import Outcome, RunContext, Status, run_batch

Outcomes = dict[StepRef, Outcome]
OnBatchDone = Callable[[Sequence[Outcome]], None]

LOCAL_START_ATTEMPTS = 3


class Runner(Protocol):
    """Runs batches, upstream ones first, and says how every step ended."""

    def run(self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone) -> Outcomes: ...


def make_runner(cluster: ClusterConfig) -> Runner:
    """The runner that the config names."""
    return InlineRunner() if cluster.runner is RunnerKind.inline else RayRunner(cluster)


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
    """Each batch is one Ray task whose arguments are the outcomes of the batches before it: Ray orders and places."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster

    def run(self, batches: Sequence[Batch], context: RunContext, on_done: OnBatchDone) -> Outcomes:
        # Under `uv run` Ray would build a second environment for its workers; they share this one, or their node's.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray

        self._connect()
        try:
            largest = _largest_node()
            for batch in batches:
                _check_fits(batch, largest)
            return self._collect(batches, self._submit(batches, context, largest), context, on_done)
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        import ray

        if self._cluster.address is None:
            _start_local(self._cluster.num_cpus)
            return
        try:
            ray.init(address=self._cluster.address, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise UserError(
                f"cluster.address={self._cluster.address}: no Ray cluster there ({one_line(error)})"
            ) from None

    def _submit(self, batches: Sequence[Batch], context: RunContext, largest: dict[str, float]) -> list[Any]:
        owner: dict[StepRef, Any] = {}
        refs = []
        for batch in batches:
            upstream = dict.fromkeys(owner[ref] for ref in batch.upstream if ref in owner)
            ref = _remote(batch, context, largest).remote(batch, context, *upstream)
            owner |= {step.ref: ref for step in batch.steps}
            refs.append(ref)
        return refs

    def _collect(
        self, batches: Sequence[Batch], refs: list[Any], context: RunContext, on_done: OnBatchDone
    ) -> Outcomes:
        import ray

        batch_of = dict(zip(refs, batches, strict=True))
        outcomes: Outcomes = {}
        pending = list(refs)
        while pending:
            ready, pending = ray.wait(pending, num_returns=1)
            for ref in ready:
                done = _outcomes_of(ref, batch_of[ref], context)
                outcomes |= {outcome.ref: outcome for outcome in done}
                on_done(done)
        return outcomes


def _start_local(num_cpus: int | None) -> None:
    """Start Ray on this machine.

    Ray gives its agents 15 s to come up and does not let one change that (ray-project/ray issue 65983); on a busy
    machine they may need more, and the second start finds their files in memory.
    """
    import ray

    for attempt in range(1, LOCAL_START_ATTEMPTS + 1):
        try:
            ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == LOCAL_START_ATTEMPTS:
                raise UserError(
                    f"a local Ray cluster did not start in {attempt} attempts ({one_line(error)}): free some CPU and "
                    "run again, or run without Ray: cluster=inline"
                ) from None


def _remote(batch: Batch, context: RunContext, largest: dict[str, float]) -> Any:
    import ray

    num_cpus = min(batch.resources.num_cpus, largest.get("CPU", 1))
    return ray.remote(_run_remotely).options(
        name=batch.label,
        num_cpus=num_cpus,
        num_gpus=batch.resources.num_gpus,
        # A dead worker is replaced; run_batch counts deaths in the ledger and sets the guilty step aside.
        max_retries=context.max_attempts * len(batch.steps),
        # Threads are fixed by the batch, so that a node's size does not move a floating-point sum.  They soon sleep
        # when they wait: on a shared core spinning costs more than the work (33 decode steps 38 s, without it 3 s).
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(max(1, int(num_cpus))), "GOMP_SPINCOUNT": "1000"}},
    )


def _run_remotely(batch: Batch, context: RunContext, *upstream: Iterable[Outcome]) -> list[Outcome]:
    return run_batch(batch, context, [outcome for outcomes in upstream for outcome in outcomes])


def _outcomes_of(ref: Any, batch: Batch, context: RunContext) -> list[Outcome]:
    import ray

    try:
        done: list[Outcome] = ray.get(ref)
        return done
    except ray.exceptions.RayError as error:
        store, message = Store(context.store_root), one_line(getattr(error, "cause", None) or error)
        return [_without_word(step.ref, store, message) for step in batch.steps]


def _without_word(ref: StepRef, store: Store, message: str) -> Outcome:
    """The outcome of a step whose batch died for good: what it published counts."""
    if store.find(ref) is not None:
        return Outcome(ref, Status.succeeded)
    return Outcome(ref, Status.failed, FailureClass.crash, message)


def _upstream(batch: Batch, outcomes: Outcomes) -> list[Outcome]:
    return [outcomes[ref] for ref in batch.upstream if ref in outcomes]


def _largest_node() -> dict[str, float]:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return {kind: max(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}


def _check_fits(batch: Batch, largest: dict[str, float]) -> None:
    if batch.resources.num_gpus > largest["GPU"]:
        raise UserError(
            f"{batch.label} needs {batch.resources.num_gpus:g} GPUs on one node, but the cluster's largest node has "
            f"{largest['GPU']:g}: lower engine.num_gpus and engine.tensor_parallel_size, or use a larger node"
        )
