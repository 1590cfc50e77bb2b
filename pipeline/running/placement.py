"""Where batches run on a Ray cluster: what a batch takes of its nodes, and what fits on none."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import UserError
from pipeline.running.batches import Batch
from pipeline.running.nodes import Node, Tell
from pipeline.steps.step import Resources
from stages.units import GIB


@dataclass(frozen=True, slots=True)
class Kind:
    """A thing that nodes offer and steps take: its unit, both amounts, and what to do where there is too little."""

    unit: str
    of_node: Callable[[Node], float]
    of_step: Callable[[Resources], float]
    advice: str


KINDS = (
    Kind(
        "CPUs",
        lambda node: node.num_cpus,
        lambda step: step.num_cpus,
        "lower engine.num_cpus or cluster.stages.STAGE.num_cpus, use a larger node",
    ),
    Kind(
        "GPUs",
        lambda node: node.num_gpus,
        lambda step: step.num_gpus,
        "lower engine.tensor_parallel_size, spread it over nodes with engine.pipeline_parallel_size, use a larger node",
    ),
    Kind(
        "GiB of memory",
        lambda node: node.memory_gib,
        lambda step: step.memory_gib or 0,
        "lower cluster.stages.STAGE.memory_gib, use a larger node",
    ),
)


def check_fits(batch: Batch, nodes: Sequence[Node]) -> None:
    """Refuse what no node could ever hold: Ray would let it wait for ever."""
    if lack := lacking(batch.resources, nodes):
        what, advice = lack
        raise UserError(
            f"{batch.label} {what}: {advice}, or set cluster.autoscales=true if nodes come when they are asked for"
        )


def lacking(resources: Resources, nodes: Sequence[Node]) -> tuple[str, str] | None:
    """What the resources need and the nodes lack, and what to do about it; None where they can be had."""
    total = sum(node.num_gpus for node in nodes)
    if resources.num_nodes > 1 and resources.num_gpus > total:
        return f"needs {resources.num_gpus:g} GPUs, but the cluster has {total:g}", "add nodes"
    needs = bundles(resources)[0]
    combinations = itertools.chain.from_iterable(itertools.combinations(KINDS, size) for size in (1, 2, 3))
    kinds = next((each for each in combinations if not any(holds(node, needs, each) for node in nodes)), None)
    if kinds is None:
        return None
    listed = " and ".join(f"{kind.of_step(needs):g} {kind.unit}" for kind in kinds)
    if len(kinds) > 1:
        has = "no node of the cluster has both" if len(kinds) == 2 else "no node of the cluster has all of that"
    else:
        has = f"the cluster's largest node has {max(map(kinds[0].of_node, nodes), default=0.0):.4g}"
    return f"needs {listed} on one node, but {has}", kinds[-1].advice


def holds(node: Node, resources: Resources, kinds: Iterable[Kind] = KINDS) -> bool:
    """Whether the node has so much of all the kinds, when nothing runs there."""
    return all(kind.of_node(node) >= kind.of_step(resources) for kind in kinds)


def bundles(resources: Resources) -> list[Resources]:
    """What must be had on one node each: an engine that is spread over nodes is driven from where its first GPU is."""
    if resources.num_nodes == 1:
        return [resources]
    return [replace(resources, num_gpus=1), *[Resources(num_cpus=0, num_gpus=1)] * (int(resources.num_gpus) - 1)]


def request(resources: Resources, nodes: Sequence[Node]) -> Resources:
    """What is asked of Ray: all of the smallest node that will do, where nothing may run beside it."""
    fitting = [node for node in nodes if holds(node, resources)]
    if not (resources.is_alone and fitting) or resources.num_nodes > 1:
        return resources
    node = min(fitting, key=lambda node: (node.num_gpus, node.num_cpus))
    return replace(resources, num_cpus=node.num_cpus, num_gpus=node.num_gpus)


def placement_group_of(resources: Resources) -> Any:
    """A bundle for each GPU, as vLLM's Ray executor wants them, on as few nodes as hold them."""
    from ray.util import placement_group

    return placement_group([_as_bundle(each) for each in bundles(resources)], strategy="PACK")


def _as_bundle(resources: Resources) -> dict[str, float]:
    memory = resources.memory_gib and int(resources.memory_gib * GIB)
    asked = {"GPU": float(resources.num_gpus), "CPU": resources.num_cpus, "memory": memory}
    return {name: amount for name, amount in asked.items() if amount}


class Patience:
    """How long work has waited for a node that could take it, and whether that is too long."""

    def __init__(self, limit_s: float | None, tell: Tell) -> None:
        self._limit_s, self._tell = limit_s, tell
        self._since: dict[Resources, tuple[float, str]] = {}

    def look(self, waiting: Iterable[Resources], nodes: Sequence[Node]) -> None:
        """Note what can be had nowhere now, and tell when that changes."""
        lacks = {each: lacking(each, nodes) for each in {*waiting, *self._since}}
        if served := [each for each in self._since if lacks[each] is None]:
            self._tell("a node can take the work that waited: going on")
        for each in served:
            del self._since[each]
        for each, lack in lacks.items():
            if lack is not None and each not in self._since:
                self._since[each] = time.monotonic(), lack[0]
                self._tell(f"no node can take this work: a step {lack[0]}; {self._waits()}")

    def verdict(self, resources: Resources) -> str | None:
        """Why work is not waited for any longer; None while it is."""
        since_s, what = self._since.get(resources, (None, ""))
        if since_s is None or self._limit_s is None or time.monotonic() - since_s < self._limit_s:
            return None
        return f"no node could take the work for {self._limit_s:g} s (cluster.wait_for_nodes_s): a step {what}"

    def _waits(self) -> str:
        if self._limit_s is None:
            return "waiting until one comes"
        return f"waiting {self._limit_s:g} s for one (cluster.wait_for_nodes_s)"
