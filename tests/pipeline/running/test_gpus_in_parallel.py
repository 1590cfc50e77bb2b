"""Four GPUs that Ray only counts: trials side by side, the longest first, and none idle while something could run."""

from pathlib import Path

import psutil
import pytest

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.running.batches import batches
from pipeline.running.outcome import RunContext
from pipeline.running.runner import make_runner
from pipeline.steps.step import Resources
from pipeline.store.ledger import Ledger
from pipeline.store.store import Address, open_storage
from tests.pipeline.fakes import note, turn_order
from tests.pipeline.running.test_order import seconds

pytestmark = pytest.mark.dear
ENGINE = Resources(num_cpus=2, num_gpus=1)


def test_no_gpu_waits_while_a_batch_could_run(tmp_path: Path) -> None:
    """Eight trials on four GPUs of a node whose cores 40 comparisons would take, one more is killed once.

    Each ends only when as many others as there are GPUs have begun after it: where one waits, all would for ever.
    """
    from ray.cluster_utils import Cluster

    lengths, turn = [0.5, 0.6, 0.7, 0.8, 2.5, 2.6, 2.7, 2.8], "in turn 4 of 9 until mark-compare0"
    in_turn = {"behaviour": turn, "scratch": str(tmp_path), "resources": ENGINE}
    compared = [note(f"compare{index}", behaviour="mark", scratch=str(tmp_path), seconds=0.1) for index in range(40)]
    trials = [note(f"trial {each}", seconds=each, **in_turn) for each in lengths]
    killed = note("killed", seconds=3.0, **in_turn)
    node = Cluster(initialize_head=True, head_node_args={"num_cpus": 9, "num_gpus": 4, "include_dashboard": False})
    try:
        cluster = ClusterConfig(runner=RunnerKind.ray, address=node.address, back_off_s=0)
        context = RunContext(Address(tmp_path / "store"), "run", max_attempts=2)
        work = batches([*compared, *trials, killed])
        outcomes = make_runner(cluster, seconds=seconds).run(work, context, lambda _: None)
    finally:
        node.shutdown()
    assert {outcome.message for outcome in outcomes.values()} == {""}, "none waited in vain for another"
    begun = turn_order(tmp_path / "turns")
    assert set(begun[:4]) == {"killed", "trial 2.8", "trial 2.7", "trial 2.6"}, "the longest first, side by side"
    assert begun[4:] == [f"trial {each}" for each in (2.5, 0.8, 0.7, 0.6, 0.5)], "whatever the plan's order"
    assert (tmp_path / "first-killed").exists()


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
