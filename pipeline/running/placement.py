"""Where batches run on a Ray cluster: what its nodes offer, what a batch takes of them, and what fits on none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import UserError
from pipeline.running.batches import Batch
from pipeline.steps.step import Resources
from stages.units import GIB


@dataclass(frozen=True, slots=True)
class Node:
    """What a node of the cluster offers."""

    num_cpus: float
    num_gpus: float
    memory_gib: float


def cluster_nodes() -> list[Node]:
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(node.get("CPU", 0.0), node.get("GPU", 0.0), node.get("memory", 0.0) / GIB) for node in found]


def check_fits(batch: Batch, nodes: Sequence[Node]) -> None:
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


def whole_node(resources: Resources, nodes: Sequence[Node]) -> Resources:
    """Everything that the smallest node with enough GPUs offers, so that nothing runs beside it."""
    fitting = [node for node in nodes if node.num_gpus >= resources.num_gpus]
    if not fitting or resources.num_nodes > 1:
        return resources
    node = min(fitting, key=lambda node: (node.num_gpus, node.num_cpus))
    return replace(resources, num_cpus=node.num_cpus, num_gpus=node.num_gpus)


def placement_group_of(batch: Batch) -> Any:
    """A bundle for each GPU, as vLLM's Ray executor wants them, on as few nodes as hold them."""
    from ray.util import placement_group

    resources = batch.resources
    first = {"GPU": 1.0, "CPU": resources.num_cpus}
    if resources.memory_gib is not None:
        first["memory"] = int(resources.memory_gib * GIB)
    return placement_group([first, *({"GPU": 1.0} for _ in range(int(resources.num_gpus) - 1))], strategy="PACK")
