"""What a cluster can take: nothing is asked for less than a step needs, and what no node can take is said."""

import pytest

from pipeline.errors import UserError
from pipeline.running import nodes as cluster
from pipeline.running import placement
from pipeline.running.batches import batches
from pipeline.running.nodes import ClusterLostError, Node, Nodes, blamed
from pipeline.running.placement import Patience, check_fits, lacking, request
from pipeline.steps.step import Resources
from tests.pipeline.fakes import note

SMALL, LARGE = Node(2, 0, 8, "small", "s"), Node(8, 4, 64, "large", "l")


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (
            Resources(num_cpus=3),
            r"needs 3 CPUs on one node, but the cluster's largest node has 2: lower engine.num_cpus",
        ),
        (Resources(num_gpus=1), r"needs 1 GPUs on one node, but .* has 0: lower engine.tensor_parallel_size"),
        (Resources(memory_gib=9), r"needs 9 GiB of memory on one node, but .* has 8: lower cluster.stages"),
        (Resources(num_gpus=16, num_nodes=2), r"needs 16 GPUs, but the cluster has 0: add nodes, or .*autoscales=true"),
        (Resources(num_cpus=3, is_alone=True), r"needs 3 CPUs on one node"),
    ],
)
def test_what_no_node_can_take_is_refused_with_what_is_lacking(resources: Resources, said: str) -> None:
    [batch] = batches([note("a", resources=resources)])
    with pytest.raises(UserError, match=rf"note:a {said}"):
        check_fits(batch, [SMALL])


def test_what_different_nodes_have_is_not_added_up() -> None:
    two = [Node(1, 1, 2), Node(1, 0, 8)]
    lack = lacking(Resources(num_gpus=1, memory_gib=4), two)
    assert lack is not None
    assert lack[0] == "needs 1 GPUs and 4 GiB of memory on one node, but no node of the cluster has both"
    assert lacking(Resources(num_gpus=1, memory_gib=1), two) is None
    three = [Node(4, 1, 2), Node(4, 0, 8), Node(1, 1, 8)]
    lack = lacking(Resources(num_cpus=4, num_gpus=1, memory_gib=4), three)
    assert lack is not None
    assert "has all of that" in lack[0]


def test_the_first_gpu_of_an_engine_that_is_spread_out_needs_its_cpus_beside_it() -> None:
    spread = Resources(num_cpus=4, num_gpus=4, num_nodes=2)
    assert lacking(spread, [Node(4, 2, 8), Node(1, 2, 8)]) is None
    assert lacking(spread, [Node(2, 2, 8), Node(8, 0, 8), Node(2, 2, 8)]) is not None


def test_what_is_alone_gets_a_whole_node_with_no_less_than_it_asks_for() -> None:
    asked = request(Resources(num_cpus=4, num_gpus=1, is_alone=True), [Node(2, 2, 8), LARGE, Node(4, 8, 8)])
    assert (asked.num_cpus, asked.num_gpus) == (8, 4)
    assert request(Resources(num_cpus=3), [SMALL, LARGE]) == Resources(num_cpus=3)


def test_work_that_no_node_can_take_is_said_once_and_waited_for_as_long_as_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, told = [100.0], list[str]()
    monkeypatch.setattr(placement.time, "monotonic", lambda: now[0])
    patience, step = Patience(60, told.append), Resources(num_cpus=4)
    patience.look([step], [SMALL, LARGE])
    assert told == []
    patience.look([step], [SMALL])
    now[0] += 59
    patience.look([step], [SMALL])
    assert len(told) == 1
    assert "a step needs 4 CPUs on one node, but the cluster's largest node has 2; waiting 60 s" in told[0]
    assert patience.verdict(step) is None
    now[0] += 2
    assert "no node could take the work for 60 s (cluster.wait_for_nodes_s)" in (patience.verdict(step) or "")
    assert patience.verdict(Resources()) is None
    patience.look([], [SMALL])
    assert patience.verdict(step), "what comes later and is the same does not wait once more"
    patience.look([step], [LARGE])
    assert patience.verdict(step) is None
    assert "going on" in told[-1]


def test_a_cluster_that_grows_is_waited_for_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[str]()
    monkeypatch.setattr(placement.time, "monotonic", lambda: now[0])
    patience = Patience(None, told.append)
    patience.look([Resources(num_cpus=4)], [])
    now[0] += 1e6
    assert patience.verdict(Resources(num_cpus=4)) is None
    assert "waiting until one comes" in told[0]


def test_a_worker_that_went_down_with_its_node_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "cluster_nodes", lambda: [SMALL, LARGE])
    monkeypatch.setattr(cluster, "this_node", lambda: "s")
    assert blamed([], "s") == 0
    assert blamed(["s", "gone", None], "s") == 2
    assert blamed(["s", "l"], "s", within_s=0) == 2
    monkeypatch.setattr(cluster, "this_node", lambda: None)
    assert blamed(["s", "gone", None], "s") == 2, "a process that Ray does not know of sees no other node"


def test_what_becomes_of_the_nodes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told, there, answers = list[str](), [SMALL, LARGE], [True]
    _look_always(monkeypatch, there, answers)
    nodes = Nodes(told.append)
    there.remove(LARGE)
    assert nodes.look()
    assert nodes.lost == [LARGE]
    there.append(LARGE)
    assert nodes.look()
    assert told == [
        "node large (8 CPUs, 4 GPUs) lost: what ran there runs again elsewhere",
        "node large (8 CPUs, 4 GPUs) joined",
    ]
    there.remove(SMALL)
    with pytest.raises(ClusterLostError, match="the Ray node that this driver was connected to died"):
        nodes.look()


def test_a_head_that_stays_silent_is_said_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    told, answers, now = list[str](), [True], [0.0]
    _look_always(monkeypatch, [SMALL], answers)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    nodes = Nodes(told.append)
    answers[0] = False
    for _ in range(3):
        now[0] += cluster.LOOK_EVERY_S
        assert not nodes.look()
    assert told == ["the head of the Ray cluster (head:6379) does not answer"]
    now[0] += cluster.SILENT_FOR_S + 1
    with pytest.raises(ClusterLostError, match=r"\(head:6379\) is gone"):
        nodes.look()


def _look_always(monkeypatch: pytest.MonkeyPatch, there: list[Node], answers: list[bool]) -> None:
    monkeypatch.setattr(cluster, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(cluster, "cluster_nodes", lambda: list(there))
    monkeypatch.setattr(cluster, "this_node", lambda: "s")
    monkeypatch.setattr(cluster, "head_address", lambda: "head:6379")
    monkeypatch.setattr(cluster, "answers", lambda head, within_s: answers[0])
