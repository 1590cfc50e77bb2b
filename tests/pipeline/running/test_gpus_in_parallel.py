"""Four GPUs that Ray only counts: trials side by side, the longest first, and none idle while something could run."""

import itertools
from pathlib import Path

import pytest

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.running.batches import batches
from pipeline.running.outcome import RunContext, Status
from pipeline.running.runner import make_runner
from pipeline.steps.step import Resources, Step
from pipeline.store.ledger import Ledger
from pipeline.store.store import Address, open_storage
from tests.pipeline.fakes import note
from tests.pipeline.running.test_order import seconds

pytestmark = pytest.mark.dear
ENGINE = Resources(num_cpus=2, num_gpus=1)


def spans(root: Path, steps: list[Step]) -> list[tuple[float, float]]:
    """When the last attempt at each started, and when it succeeded."""
    found = []
    for step in steps:
        events = {event["event"]: event["time"] for event in Ledger(open_storage(root)).events(step.ref)}
        found.append((events["started"], events["succeeded"]))
    return found


def test_no_gpu_waits_while_a_batch_could_run(tmp_path: Path) -> None:
    """Eight trials on four GPUs of a node whose cores 200 comparisons would take, one of them killed once."""
    from ray.cluster_utils import Cluster

    node = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 4, "include_dashboard": False})
    compared = [note(f"compare {index}", behaviour="slow", seconds=0.02) for index in range(200)]
    lengths = [0.5, 0.6, 0.7, 0.8, 2.5, 2.6, 2.7, 2.8]
    trials = [note(f"trial {each}", behaviour="slow", seconds=each, resources=ENGINE) for each in lengths]
    killed = note("killed", behaviour="die_once", scratch=str(tmp_path), seconds=3.0, resources=ENGINE)
    steps = [*compared, *trials, killed]
    try:
        cluster = ClusterConfig(runner=RunnerKind.ray, address=node.address, back_off_s=0)
        context = RunContext(Address(tmp_path / "store"), "run", max_attempts=2)
        outcomes = make_runner(cluster, seconds=seconds).run(batches(steps), context, lambda _: None)
    finally:
        node.shutdown()
    assert {outcome.status for outcome in outcomes.values()} == {Status.succeeded}
    on_gpus = spans(tmp_path / "store", trials)
    starts = [start for start, _ in on_gpus]
    assert max(starts[4:]) < min(starts[:4]), "the longest come first, whatever the plan's order"
    together = [sum(start <= moment < end for start, end in on_gpus) for moment in starts]
    assert max(together) >= 3, "side by side, beside the one that was killed"
    for start in sorted(starts)[3:]:
        free = max(end for _, end in [*on_gpus, *spans(tmp_path / "store", [killed])] if end <= start)
        assert start - free < 5, "a GPU that is free takes the next batch"
    ends = [end for _, end in spans(tmp_path / "store", compared)]
    assert min(ends) < max(end for _, end in on_gpus), "and what needs none goes on beside them"
    assert all(a <= b for a, b in itertools.pairwise(sorted(starts)))
