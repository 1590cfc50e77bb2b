"""What is free on a cluster's nodes for this run, and where its next batch goes.

Ray starts tasks that take the same in the order of their submission, and of others whatever fits first: comparisons
may hold the cores that the work of a free GPU needs.  So the driver gives it no more than there is room for, and says
to which node.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.running.nodes import Node
from pipeline.running.placement import KINDS, bundles, holds, request
from pipeline.steps.step import Resources

_ALMOST = 1e-6  # sums of fractions of a GPU


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch goes: what is asked of Ray, and of which nodes; of none in particular where Ray is to find them."""

    asked: Resources
    parts: tuple[tuple[str, Resources], ...] = ()

    @property
    def node_id(self) -> str | None:
        """The one node, if it is one."""
        return self.parts[0][0] if len(self.parts) == 1 else None


@dataclass(slots=True)
class _Left:
    """What a node has left, and what runs there."""

    node: Node
    num_cpus: float
    num_gpus: float
    memory_gib: float
    num_batches: int = 0
    num_on_gpus: int = 0
    num_guests: int = 0
    num_alone: int = 0

    @classmethod
    def of(cls, node: Node) -> "_Left":
        return cls(node, node.num_cpus, node.num_gpus, node.memory_gib)

    def has(self, resources: Resources, more_cpus: float = 0.0) -> bool:
        return (
            resources.num_cpus <= self.num_cpus + more_cpus + _ALMOST
            and resources.num_gpus <= self.num_gpus + _ALMOST
            and (resources.memory_gib or 0) <= self.memory_gib + _ALMOST
        )

    def count(self, resources: Resources, sign: int) -> None:
        self.num_cpus -= sign * resources.num_cpus
        self.num_gpus -= sign * resources.num_gpus
        self.memory_gib -= sign * (resources.memory_gib or 0)
        self.num_batches += sign
        self.num_on_gpus += sign * bool(resources.num_gpus)
        self.num_guests += sign * _is_guest(resources)
        self.num_alone += sign * resources.is_alone


class Room:
    """What this run's batches leave free on the nodes.

    ``cpus_per_gpu`` of a node's CPUs are kept for every GPU of it that is free; what computes on none takes the
    others.  Where that leaves it nothing, one such batch at a time is a node's guest, without a CPU of its own.  A node
    without GPUs is given as many batches of one core again, which Ray lets wait.
    ``grows``: nodes come when they are asked for, so that what fits nowhere now is asked for as well.
    """

    def __init__(self, nodes: Iterable[Node], grows: bool) -> None:
        self._grows = grows
        self._left: dict[str, _Left] = {}
        self._closed = set[str]()
        self.cpus_per_gpu = 0.0
        self.update(nodes)

    def update(self, nodes: Iterable[Node]) -> None:
        """Take note of the nodes that there are now."""
        there = {node.node_id: node for node in nodes}
        self._left = {name: self._left.get(name) or _Left.of(node) for name, node in there.items()}

    def num_places(self, resources: Resources) -> float:
        """How many such batches run at once where nothing else does; at least one."""
        if self._grows:
            return math.inf
        asked = request(resources, self._nodes)
        if asked.num_nodes > 1:
            return max(1, sum(node.num_gpus for node in self._nodes) // asked.num_gpus)
        return max(1, sum(_times(node, asked) for node in self._nodes))

    def place(self, resources: Resources) -> Place | None:
        """Take room for a batch; None where there is none now."""
        parts = self._spread(resources) if resources.num_nodes > 1 else self._on_one_node(resources)
        if parts is None:
            return Place(request(resources, self._nodes)) if self._grows else None
        for node_id, part in parts:
            self._left[node_id].count(part, 1)
        return Place(resources if resources.num_nodes > 1 else parts[0][1], parts)

    def give_back(self, place: Place) -> None:
        """Free what a batch had; a node that is gone has nothing any more."""
        for node_id, part in place.parts:
            if node_id in self._left:
                self._left[node_id].count(part, -1)

    def close_for(self, resources: Resources) -> None:
        """Until ``reopen``, keep less urgent batches without GPUs from the node that will have room for this one first.

        Not where it waits for GPUs: those they do not take.
        """
        if resources.num_nodes > 1:
            return
        asked = request(resources, self._nodes)
        waiting = [left for left in self._left.values() if _lacks_no_gpu(left, asked)]
        if waiting:
            self._closed.add(max(waiting, key=lambda left: (-left.num_alone, left.num_cpus)).node.node_id)

    def reopen(self) -> None:
        """Forget what was closed: another round begins."""
        self._closed.clear()

    @property
    def _nodes(self) -> Sequence[Node]:
        return [left.node for left in self._left.values()]

    def _on_one_node(self, resources: Resources) -> tuple[tuple[str, Resources], ...] | None:
        asked = request(resources, self._nodes)
        fitting = [left for left in self._left.values() if self._takes(left, asked)]
        if not fitting and not asked.num_gpus and not asked.is_alone:
            asked = replace(asked, num_cpus=0)
            fitting = [left for left in self._left.values() if self._takes_guest(left, asked)]
        if not fitting:
            return None
        return ((min(fitting, key=lambda left: _preference(left, asked)).node.node_id, asked),)

    def _takes(self, left: _Left, asked: Resources) -> bool:
        if left.num_alone:
            return False
        if asked.is_alone:
            return not left.num_batches and _is_like(left.node, asked)
        if asked.num_gpus:
            return left.has(asked)
        # A core has its next step at hand when it is free: it does not wait for the driver.
        ahead = left.node.num_cpus if not left.node.num_gpus and asked.num_cpus <= 1 else 0.0
        kept = self.cpus_per_gpu * left.num_gpus
        return left.node.node_id not in self._closed and left.has(asked, ahead - kept)

    def _takes_guest(self, left: _Left, asked: Resources) -> bool:
        is_open = not left.num_alone and left.node.node_id not in self._closed
        return is_open and bool(left.node.num_gpus) and not left.num_guests and left.has(asked)

    def _spread(self, resources: Resources) -> tuple[tuple[str, Resources], ...] | None:
        """A bundle for each GPU, on as few nodes as hold them, as Ray packs a placement group."""
        parts: list[tuple[str, Resources]] = []
        try:
            for bundle in bundles(resources):
                fitting = [left for left in self._left.values() if not left.num_alone and left.has(bundle)]
                if not fitting:
                    return None
                here = {node_id for node_id, _ in parts}
                best = min(fitting, key=lambda left: (left.node.node_id not in here, -left.num_gpus))
                best.count(bundle, 1)
                parts.append((best.node.node_id, bundle))
        finally:
            for node_id, bundle in parts:
                self._left[node_id].count(bundle, -1)
        return tuple(parts)


def _times(node: Node, asked: Resources) -> int:
    """How often a node has so much of everything."""
    shares = [(kind.of_node(node) + _ALMOST) / kind.of_step(asked) for kind in KINDS if kind.of_step(asked)]
    return int(min(shares, default=0))


def _is_guest(resources: Resources) -> bool:
    return not resources.num_cpus and not resources.num_gpus


def _is_like(node: Node, asked: Resources) -> bool:
    """Whether all of the node is what is asked for."""
    return holds(node, asked) and (node.num_cpus, node.num_gpus) == (asked.num_cpus, asked.num_gpus)


def _lacks_no_gpu(left: _Left, asked: Resources) -> bool:
    if asked.is_alone:
        return _is_like(left.node, asked) and not left.num_on_gpus
    return holds(left.node, asked) and asked.num_gpus <= left.num_gpus + _ALMOST


def _preference(left: _Left, asked: Resources) -> tuple[float, float]:
    """The least is taken.  GPUs are packed, so that some stay together; the rest goes where none are, and spreads."""
    if asked.num_gpus:
        return left.num_gpus, left.num_cpus
    return left.node.num_gpus, -left.num_cpus
