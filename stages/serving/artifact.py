"""What serving stages write: ``point.json`` with its requests and log, and a device's ``ceilings.json``."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.documents import read_json, write_json, write_table
from stages.gpu import GpuState
from stages.serving.roofline import Work

POINT, REQUESTS, LOG = "point.json", "requests.parquet", "server.log"
CEILINGS = "ceilings.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Requests a second, mean of the runs."""

    mean: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """What was measured at one start; None is what so many values cannot say.

    The intervals of the quantiles are of the requests of that start.
    """

    n: int
    mean: float | None = None
    median: float | None
    p90: float | None
    p90_low: float | None = None
    p90_high: float | None = None
    p99: float | None
    p99_low: float | None = None
    p99_high: float | None = None
    spread: float | None = None  # standard deviation over mean


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """How many of the first requests do not count, and how that was found."""

    num_discarded: int
    method: str


@dataclass(frozen=True, slots=True)
class ClientCeiling:
    """What the load client reaches against a null server; at least, since that server has limits as well.

    ``tokens_per_s`` is None where answers are not streamed: a whole answer costs the same whatever its length.
    """

    requests_per_s: float
    tokens_per_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Validity:
    """Whether a point can be believed, every reason why not, and what that was judged by."""

    is_valid: bool
    reasons: list[str]
    num_requests: int
    num_failed: int
    warm_up: WarmUp
    client_ceiling: ClientCeiling
    repeats: list[float]
    spread: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The planned GPUs, and their state around the measurement; None without NVIDIA's driver."""

    product: str
    driver: str | None
    before: list[GpuState] | None
    after: list[GpuState] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """What vLLM computed with; None is what its log does not say."""

    linear: dict[str, str] | None  # kernel by scheme
    attention: str | None
    flash_attention_version: float | None
    cuda_graphs: bool
    cuda_graph_mode: str | None
    compile_s: float | None
    kv_cache_tokens: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PointFacts:
    """One workload in one mode at one start of a server: what was measured, and everything needed to believe it."""

    workload: str
    mode: str
    prompt_tokens: int
    output_tokens: int
    num_gpus: int
    replicas: int
    rate_share: float | None
    asked_requests_per_s: float | None
    requests_per_s: Rate
    latency_s: Distribution
    ttft_ms: Distribution
    itl_ms: Distribution
    direct_requests_per_s: float | None
    validity: Validity
    device: Device
    kernels: Kernels
    work: Work | None
    concurrency: int
    start: int = 1


def write_point(out: Path, facts: PointFacts, requests: Sequence[Mapping[str, Any]], log: Path) -> None:
    """``requests`` are kept as rows, and the server's ``log`` as it is."""
    import pyarrow as pa

    write_json(out / POINT, asdict(facts))
    write_table(out / REQUESTS, pa.Table.from_pylist(list(requests)))
    shutil.copyfile(log, out / LOG)


def read_point(directory: Path) -> PointFacts:
    """What is known of the point."""
    return read_json(directory / POINT, PointFacts)


def write_ceilings(out: Path, device: str, found: Mapping[str, float | None]) -> None:
    """``found`` by ``bandwidth_gb_s`` and ``<arithmetic>_tflop_s``; None where the device has none."""
    write_json(out / CEILINGS, {"device": device, **found})


def read_ceilings(directory: Path) -> dict[str, float | None]:
    """What ``write_ceilings`` found."""
    known = read_json(directory / CEILINGS, dict[str, float | str | None])
    return {name: value for name, value in known.items() if not isinstance(value, str)}
