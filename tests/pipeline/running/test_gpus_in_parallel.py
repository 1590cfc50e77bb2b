"""Four GPUs that Ray only counts: trials side by side, the longest first, and none idle while something could run."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
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


def process_start_s() -> float:
    """What a process that imports Ray takes here and now."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import ray"], check=True)
    return time.monotonic() - started


def test_no_gpu_waits_while_a_batch_could_run(tmp_path: Path) -> None:
    """Eight trials on four GPUs of a node whose cores 40 comparisons would take, one more is killed once."""
    from ray.cluster_utils import Cluster

    compared = [note(f"compare {index}", behaviour="slow", seconds=0.1) for index in range(40)]
    lengths = [0.5, 0.6, 0.7, 0.8, 2.5, 2.6, 2.7, 2.8]
    trials = [note(f"trial {each}", behaviour="slow", seconds=each, resources=ENGINE) for each in lengths]
    killed = note("killed", behaviour="die_once", scratch=str(tmp_path), seconds=3.0, resources=ENGINE)
    node = Cluster(initialize_head=True, head_node_args={"num_cpus": 9, "num_gpus": 4, "include_dashboard": False})
    try:
        cluster = ClusterConfig(runner=RunnerKind.ray, address=node.address, back_off_s=0)
        context = RunContext(Address(tmp_path / "store"), "run", max_attempts=2)
        work = batches([*compared, *trials, killed])
        outcomes = make_runner(cluster, seconds=seconds).run(work, context, lambda _: None)
    finally:
        node.shutdown()
    assert {outcome.status for outcome in outcomes.values()} == {Status.succeeded}
    on_gpus = spans(tmp_path / "store", trials)
    starts = [start for start, _ in on_gpus]
    assert max(starts[4:]) < min(starts[:4]), "the longest come first, whatever the plan's order"
    assert max(sum(start <= moment < end for start, end in on_gpus) for moment in starts) >= 3, "side by side"
    ended = sorted(end for _, end in [*on_gpus, *spans(tmp_path / "store", [killed])])
    limit_s = max(5.0, 4 * process_start_s())
    for start in sorted(starts)[4:]:  # the first four found theirs free
        assert start - max(end for end in ended if end <= start) < limit_s, "a free GPU takes the next batch"
    first_compared = min(start for start, _ in spans(tmp_path / "store", compared))
    assert first_compared < ended[-1], "what needs no GPU goes on beside them"


def test_each_batch_has_a_process_and_that_of_the_next_starts_ahead(tmp_path: Path) -> None:
    """One GPU: the second's process has prepared itself before the first has ended, on the same worker of Ray's.

    The third's loses that worker, as to a lack of memory, and ends with it; another tries again.
    """
    from ray.cluster_utils import Cluster

    scratch, one = str(tmp_path), Resources(num_cpus=1, num_gpus=1)
    first = note("a", behaviour="await prepared-b", scratch=scratch, resources=one)
    second = note("b", first, behaviour="tell_pid", scratch=scratch, resources=one)
    third = note("c", second, behaviour="lose_parent_once", scratch=scratch, resources=one)
    node = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    try:
        cluster = ClusterConfig(runner=RunnerKind.ray, address=node.address, back_off_s=0)
        context = RunContext(Address(tmp_path / "store"), "run", max_attempts=2)
        outcomes = make_runner(cluster).run(batches([first, second, third]), context, lambda _: None)
        pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
        assert not any(map(psutil.pid_exists, pids)), "a GPU is given back before the next has it"
    finally:
        node.shutdown()
    assert {outcome.message for outcome in outcomes.values()} == {""}, "none waited in vain for another"
    assert len(set(pids)) == 2
    started = Ledger(open_storage(tmp_path / "store")).events(second.ref)[0]
    assert started["node"], "what a lost node takes with it is known"
