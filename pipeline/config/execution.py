"""Where and how a plan is carried out: cluster, store, budget, tracking.  None of it is part of what a result is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from pipeline.steps.stages import REPORT, STAGES


class Verify(Enum):
    """How the store is looked at: each artifact's manifest, or every byte it lists."""

    quick = "quick"
    full = "full"


class RunnerKind(Enum):
    """Where steps run: on Ray, or one after the other in this process."""

    ray = "ray"
    inline = "inline"


@dataclass(kw_only=True, slots=True)
class ResourceConfig:
    """What one step of a stage occupies; null keeps the stage's own.  Taking more ``memory_gib`` ends the step."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    memory_gib: float | None = None


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where steps run.  ``address`` null starts a local Ray; ``stages`` overrides the resources of a stage by name.

    ``replicas`` engines serve each checkpoint, its shards spread over them.  ``autoscales``: nodes come when they are
    asked for, so what fits no node of today is not refused.  Otherwise work that no node can take any more, because one
    was lost, waits ``wait_for_nodes_s`` for another (null: for ever): ten minutes are enough for a machine that starts
    again, and a driver that waits longer holds what is left of its allocation for nothing.

    ``timeout_s``: the longest a step of a stage may take; the default for stages that are not named is under
    ``default``.  ``num_gpus`` is what an estimate of time counts on; null: what this machine has, and of a cluster that
    runs elsewhere nothing.  A step is tried ``max_attempts`` times in a run, after ``back_off_s`` that doubles each
    time, where another attempt may mend it.
    """

    runner: RunnerKind = RunnerKind.ray
    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None
    autoscales: bool = False
    wait_for_nodes_s: float | None = 600.0
    replicas: int = 1
    max_attempts: int = 2
    back_off_s: float = 5.0
    timeout_s: dict[str, float] = field(default_factory=lambda: {"default": 4 * 3600.0, "quantize": 24 * 3600.0})
    # Each a ResourceConfig; typed by hand, because OmegaConf takes no new entry of a typed mapping from a command line.
    stages: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_stages("cluster.stages", self.stages)
        _check_stages("cluster.timeout_s", self.timeout_s, "default")
        self.stages = {name: _resource_config(f"cluster.stages.{name}", value) for name, value in self.stages.items()}
        if self.address is not None and self.num_cpus is not None:
            raise ValueError(
                "cluster.num_cpus is for a Ray of this machine's own (cluster=local); a cluster that runs has what its "
                "nodes were started with"
            )
        for name, limit_s in self.timeout_s.items():
            if not limit_s > 0:
                raise ValueError(f"cluster.timeout_s.{name} must be more than 0; got {limit_s}")
        if self.wait_for_nodes_s is not None and not self.wait_for_nodes_s >= 0:
            raise ValueError(f"cluster.wait_for_nodes_s must be 0 or more, or null; got {self.wait_for_nodes_s}")
        for name in ("replicas", "max_attempts", "num_gpus"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"cluster.{name} must be at least 1; got {value}")


def _check_stages(name: str, table: Mapping[str, Any], *more: str) -> None:
    """The report is made by the driver itself, whatever a table says."""
    known = [*more, *(stage for stage in STAGES if stage != REPORT.name)]
    if unknown := [each for each in table if each not in known]:
        raise ValueError(f"{name} has no stage {unknown[0]!r}: there are {', '.join(known)}")


def _resource_config(name: str, value: Any) -> ResourceConfig:
    if isinstance(value, ResourceConfig):
        return value
    known = {each.name for each in fields(ResourceConfig)}
    if not isinstance(value, dict) or not value.keys() <= known:
        raise ValueError(f"{name} must be a mapping with keys among {', '.join(sorted(known))}; got {value!r}")
    for key, amount in value.items():
        is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if amount is not None and not (is_number and 0 <= amount < math.inf):
            raise ValueError(f"{name}.{key} must be a number, 0 or more; got {amount!r}")
    return ResourceConfig(**value)


@dataclass(kw_only=True, slots=True)
class StoreConfig:
    """Where artifacts are kept.  ``verify=full`` digests every artifact of the plan again.

    ``root``: a directory that every worker can reach, or a URL of object storage (``s3://bucket/prefix``), which each
    machine reads through its own directory ``cache``.
    """

    root: str = "results/store"
    cache: str = "results/cache"
    verify: Verify = Verify.quick


@dataclass(kw_only=True, slots=True)
class BudgetConfig:
    """A run stops before it has used so many hours of GPUs, or dollars for them, counting each GPU a batch holds."""

    gpu_hours: float | None = None
    usd: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            if (value := getattr(self, each.name)) is not None and not value > 0:
                raise ValueError(f"budget.{each.name} must be more than 0, or null for no limit; got {value}")


@dataclass(kw_only=True, slots=True)
class GcConfig:
    """``mode=gc`` lists what no sweep of the store refers to; ``delete`` removes it."""

    delete: bool = False


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """The MLflow server to mirror into; null keeps SQLite and artifacts beside the store."""

    enabled: bool = True
    uri: str | None = None
    experiment: str | None = None
