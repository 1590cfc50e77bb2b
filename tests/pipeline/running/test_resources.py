"""What batches occupy: GPUs are never oversubscribed, replicas share the work, and what cannot fit is refused early."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.errors import UserError
from pipeline.running.batches import batches
from pipeline.running.outcome import RunContext, Status
from pipeline.running.runner import make_runner
from pipeline.steps.step import Resources, Step
from pipeline.store.ledger import Ledger
from pipeline.store.store import Address, Store, open_storage
from tests.pipeline.fakes import note, serving
from tests.pipeline.planning.test_plan import planned
from tests.sweeping import wait_for

pytestmark = pytest.mark.dear


@pytest.fixture(scope="module")
def node_of_eight() -> Any:
    """A Ray node that declares 8 logical GPUs and as many CPUs."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 8, "include_dashboard": False})
    yield started
    started.shutdown()


def test_logical_gpus_are_never_oversubscribed(tmp_path: Path, node_of_eight: Any) -> None:
    """TP 1, 2 and 4, and one engine of two nodes' worth, judged by when each step started and ended."""
    sizes = [1, 2, 4, 1, 2, 4, 1, 2, 4, 2]
    steps = [
        note(f"{index}", behaviour="slow", resources=Resources(num_cpus=0.5, num_gpus=size, num_nodes=1 + (index == 9)))
        for index, size in enumerate(sizes)
    ]
    cluster = ClusterConfig(runner=RunnerKind.ray, address=node_of_eight.address)
    context = RunContext(Address(tmp_path), "run", max_attempts=2)
    outcomes = make_runner(cluster).run(batches(steps), context, lambda _: None)
    assert {outcome.status for outcome in outcomes.values()} == {Status.succeeded}
    spans = [_span(tmp_path, step) for step in steps]
    moments = sorted(itertools.chain.from_iterable(spans))
    in_use = [
        sum(step.resources.num_gpus for step, (start, end) in zip(steps, spans, strict=True) if start <= moment < end)
        for moment in moments
    ]
    assert max(in_use) <= 8
    assert max(in_use) > 4, "small trials must share the node"


def _span(root: Path, step: Step) -> tuple[float, float]:
    events = {event["event"]: event["time"] for event in Ledger(open_storage(root)).events(step.ref)}
    return events["started"], events["succeeded"]


def test_every_replica_gets_its_part_of_every_task() -> None:
    """A document of one task may cost a hundred times one of another."""
    checkpoint = note("weights")
    shards = [serving(f"{task}{index}", checkpoint, task=task) for task in ("dear", "cheap") for index in range(7)]
    for index, shard in enumerate(shards):
        object.__setattr__(shard, "num_documents", 10 + index % 7)
    [first, *shares] = batches([checkpoint, *shards], replicas=3)
    assert first.steps == (checkpoint,)
    assert len(shares) == 3
    for task in ("dear", "cheap"):
        loads = [sum(step.num_documents for step in share.steps if step.config.task == task) for share in shares]
        assert max(loads) - min(loads) <= 16, "a shard's documents"
    assert sorted(step.label for share in shares for step in share.steps) == sorted(step.label for step in shards)
    assert all(share.upstream == (checkpoint.ref,) for share in shares)


def test_a_node_that_joins_later_is_used(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    steps = [note(f"{index}", behaviour="slow") for index in range(40)]
    growing = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster = ClusterConfig(runner=RunnerKind.ray, address=growing.address)
    context = RunContext(Address(tmp_path), "run", max_attempts=2)
    with ThreadPoolExecutor() as thread:
        running = thread.submit(make_runner(cluster).run, batches(steps), context, lambda _: None)
        wait_for(lambda: len(list((tmp_path / "note").glob("*/manifest.json"))) > 4)
        growing.add_node(num_cpus=1)
        running.result()
    growing.shutdown()
    spans = sorted(_span(tmp_path, step) for step in steps)
    overlaps = [before[1] > after[0] for before, after in itertools.pairwise(spans)]
    assert not any(overlaps[:3])
    assert any(overlaps)


def test_at_most_max_parallel_batches_are_in_flight(tmp_path: Path, node_of_eight: Any) -> None:
    steps = [note(f"{index}", behaviour="slow", resources=Resources(num_cpus=0.1)) for index in range(4)]
    cluster = ClusterConfig(runner=RunnerKind.ray, address=node_of_eight.address)
    context = RunContext(Address(tmp_path), "run", max_attempts=2)
    make_runner(cluster, max_parallel=1).run(batches(steps), context, lambda _: None)
    spans = sorted(_span(tmp_path, step) for step in steps)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_what_is_said_of_a_stage_leaves_the_rest_of_its_share(tmp_path: Path) -> None:
    said = ["engine=vllm_gpu", "engine.pipeline_parallel_size=2", "+cluster.stages.answer.memory_gib=64"]
    plan = planned(tmp_path, "+sweep=smoke", *said)
    shares = {step.resources for step in plan.steps.values() if step.stage.name == "answer"}
    assert shares == {Resources(num_cpus=4, num_gpus=2, num_nodes=2, memory_gib=64)}


def test_what_no_node_can_hold_is_refused_and_what_one_can_is_done(tmp_path: Path, node_of_eight: Any) -> None:
    fitting, large = note("fitting"), note("large", resources=Resources(num_cpus=9))
    runner = make_runner(ClusterConfig(runner=RunnerKind.ray, address=node_of_eight.address))
    context = RunContext(Address(tmp_path), "run", max_attempts=2)
    with pytest.raises(UserError, match=r"needs 9 CPUs on one node, but the cluster's largest node has 8"):
        runner.run(batches([fitting, large]), context, lambda _: None)
    assert Store(tmp_path).find(fitting.ref) is None
    assert runner.run(batches([fitting]), context, lambda _: None)[fitting.ref].status is Status.succeeded
