"""The nodes of a Ray cluster, as they come and go."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.running.handshake import answers
from stages.errors import one_line
from stages.units import GIB

Tell = Callable[[str], None]

LOOK_EVERY_S = 5.0
# A head that restarts is back within so long; 60 s after its death Ray ends this process without a word.
SILENT_FOR_S = 35.0
# Ray's own limit for a node that is silent is 15 s.
LOSS_IS_KNOWN_AFTER_S = 30.0
NODE_DIED = "the Ray node that this driver was connected to died"


class ClusterLostError(Exception):
    """The cluster is gone, or this process's way to it; the message says which."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a node of the cluster offers, and which it is."""

    num_cpus: float
    num_gpus: float
    memory_gib: float
    name: str = ""
    node_id: str = ""


def cluster_nodes() -> list[Node]:
    """The nodes that are alive.  Raises ConnectionError where the head does not say."""
    import ray

    try:
        known = ray.nodes()
    except ray.exceptions.RayError as error:
        raise ConnectionError(one_line(error)) from error
    return [
        Node(
            num_cpus=node["Resources"].get("CPU", 0.0),
            num_gpus=node["Resources"].get("GPU", 0.0),
            memory_gib=node["Resources"].get("memory", 0.0) / GIB,
            name=node["NodeManagerHostname"],
            node_id=node["NodeID"],
        )
        for node in known
        if node["Alive"]
    ]


def this_node() -> str | None:
    """Which node of the cluster this process is on; None where it is part of none."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray and ray.is_initialized() else None


def head_address() -> str:
    """HOST:PORT of the cluster's head."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def blamed(deaths: Sequence[str | None], here: str | None, within_s: float = LOSS_IS_KNOWN_AFTER_S) -> int:
    """How many of the workers that died on these nodes died alone: what went down with its node is not to blame.

    Other nodes than this one are watched for ``within_s`` before they are taken to be well; by a process that Ray does
    not know of they are not seen at all, and what died there is not counted.
    """
    deadline_s, others = time.monotonic() + within_s, {node for node in deaths if node and node != here}
    if this_node() is None:
        return sum(node not in others for node in deaths)
    gone = set[str]()
    while others:
        try:
            gone = others - {node.node_id for node in cluster_nodes()}
        except ConnectionError:  # the cluster itself is going: nobody can be blamed
            return 0
        if not others - gone or time.monotonic() > deadline_s:
            break
        time.sleep(1)
    return sum(node not in gone for node in deaths)


class Nodes:
    """The nodes of a run's cluster, looked at now and then; what changes is told."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._head = head_address()
        self._own = this_node()
        self._silent_since: float | None = None
        self._looked_s = time.monotonic()
        self.alive, self.lost = cluster_nodes(), list[Node]()

    def look(self) -> bool:
        """Whether it was time to look again.  Raises ClusterLostError."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return False
        self._looked_s = now_s
        if not self._answers(now_s):
            return False
        before = self.alive
        try:
            self.alive = cluster_nodes()
        except ConnectionError:  # it went silent a moment ago: the next look sees it
            return False
        known, there = ({node.node_id for node in nodes} for nodes in (before, self.alive))
        if self._own not in there:
            raise ClusterLostError(NODE_DIED)
        self.lost = [each for each in before if each.node_id not in there]
        self._tell_of("lost: what ran there runs again elsewhere", self.lost)
        self._tell_of("joined", (each for each in self.alive if each.node_id not in known))
        return True

    def _answers(self, now_s: float) -> bool:
        """Whether the head does; nothing is asked of a silent one, since Ray would wait for it."""
        if answers(self._head, LOOK_EVERY_S):
            self._silent_since = None
            return True
        if self._silent_since is None:
            self._silent_since = now_s
            self._tell(f"the head of the Ray cluster ({self._head}) does not answer")
        if now_s - self._silent_since > SILENT_FOR_S:
            raise ClusterLostError(f"the head of the Ray cluster ({self._head}) is gone")
        return False

    def _tell_of(self, what: str, nodes: Iterable[Node]) -> None:
        if names := [f"{node.name} ({node.num_cpus:g} CPUs, {node.num_gpus:g} GPUs)" for node in nodes]:
            self._tell(f"{'node' if len(names) == 1 else 'nodes'} {', '.join(names)} {what}")
