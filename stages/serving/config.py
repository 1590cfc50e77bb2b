"""What a point of a profile is: a workload, a mode, the server and its device."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from stages.evaluate.config import EngineConfig
from stages.fields import execution, identity


class ProfileMode(Enum):
    """One request at a time, all at once, or as many a second as a share of the most."""

    synchronous = "synchronous"
    throughput = "throughput"
    rate = "rate"


@dataclass(kw_only=True, slots=True)
class WorkloadConfig:
    """Requests of one shape, and how many of them make a point."""

    prompt_tokens: int = identity()
    output_tokens: int = identity()
    num_sync_requests: int = identity(10)
    concurrency: int = identity(256)  # requests at once for maximum throughput
    num_runs: int = identity(3)  # so often at each start of the server
    direct: bool = identity(True)  # ask the engine without HTTP as well
    min_direct_share: float = identity(0.85)  # of that; less and HTTP was the limit: the point is not valid
    rate_s: float = identity(30.0)  # how long a rate is held
    max_spread: float = identity(
        0.1
    )  # of repeats, relative, and of what changes at a rate; more: the point is not valid
    rates: list[float] = execution(factory=list)  # shares of the maximum throughput; each is a point

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "num_sync_requests", "concurrency", "num_runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"workload {name} must be at least 1; got {getattr(self, name)}")
        if not all(0 < rate <= 1.5 for rate in self.rates):
            raise ValueError(f"workload rates are shares of the maximum throughput, such as 0.5; got {self.rates}")


@dataclass(kw_only=True, slots=True)
class ServerConfig:
    """vLLM's server and the client that loads it.  ``replicas`` engines share the requests, each on its own GPUs.

    Every point is measured at ``num_starts`` starts: what one start happens to be is in all its requests, so that an
    interval and a verdict are of several.
    """

    replicas: int = identity(1)
    num_api_servers: int = identity(1)
    num_starts: int = execution(3)
    num_clients: int = execution(2)  # processes that send requests
    port: int | None = execution(None)  # null: any that is free
    allow_busy_gpu: bool = execution(False)
    start_timeout_s: float = execution(900.0)

    def __post_init__(self) -> None:
        if self.num_starts < 1:
            raise ValueError(f"server.num_starts must be at least 1; got {self.num_starts}")


@dataclass(kw_only=True, slots=True)
class ProfileConfig:
    """One point.  Whatever moves a clock is identity: the device, its driver, vLLM, and what the engine may take."""

    workload: str = execution()  # its name
    load: WorkloadConfig = identity()
    mode: ProfileMode = identity()
    rate_share: float | None = identity(None)
    engine: EngineConfig = identity()
    limits: dict[str, Any] = identity(factory=dict)  # fields of the engine that are no part of what it answers
    server: ServerConfig = identity(factory=ServerConfig)
    device: str = identity()
    driver: str | None = identity(None)
    vllm: str = identity()
    random_weights: bool = identity(False)
    start: int = identity(1, neutral=1)  # of so many of the server

    @property
    def num_gpus(self) -> int:
        return self.engine.num_gpus * self.server.replicas


@dataclass(kw_only=True, slots=True)
class CeilingsConfig:
    """The device, as the plan names it."""

    device: str = identity()
    driver: str | None = identity(None)
    on_gpu: bool = identity()
    allow_busy_gpu: bool = execution(False)
