"""The points of a trial's profile: every workload alone, at maximum throughput, and at rates up to it.  Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from pipeline.config.schema import Config
from pipeline.planning.devices import Device
from stages.evaluate.config import ENDPOINT_FIELDS
from stages.serving.config import ProfileConfig, ProfileMode


@dataclass(frozen=True, slots=True)
class Point:
    """One point.  ``name`` is ``workload/mode``, of later starts of the server ``workload/mode/2``.

    A rate is a share of what the point ``after`` finds, that of the first start, so that all starts meet the same load.
    """

    name: str
    config: ProfileConfig
    after: str | None = None


def points(config: Config, device: Device, random_weights: bool) -> Iterator[Point]:
    """All points of a trial, each after the one it needs, start by start."""
    for start in range(1, config.server.num_starts + 1):
        yield from _of_start(start, config, device, random_weights)


def _of_start(start: int, config: Config, device: Device, random_weights: bool) -> Iterator[Point]:
    suffix = f"/{start}" if start > 1 else ""
    for name, workload in config.workloads.items():
        modes: list[tuple[str, ProfileMode, float | None]] = [
            ("synchronous", ProfileMode.synchronous, None),
            ("throughput", ProfileMode.throughput, None),
            *((f"rate-{share:g}", ProfileMode.rate, share) for share in workload.rates),
        ]
        for label, mode, share in modes:
            found = ProfileConfig(
                workload=name,
                load=workload,
                mode=mode,
                rate_share=share,
                engine=config.engine,
                limits=_limits(config),
                server=config.server,
                device=device.product,
                driver=device.driver,
                vllm=device.vllm,
                random_weights=random_weights,
                start=start,
            )
            yield Point(f"{name}/{label}{suffix}", found, f"{name}/throughput" if mode is ProfileMode.rate else None)


def _limits(config: Config) -> dict[str, object]:
    """What does not change an engine's answers, but how fast it gives them."""
    # A server has whole GPUs, and one checkpoint.
    silent = ("gpu_memory_gib", "batch_size", "gpus_per_rank", "exchange_weights", "samples", *ENDPOINT_FIELDS)
    return {
        field.name: getattr(config.engine, field.name)
        for field in fields(config.engine)
        if not field.metadata["identity"] and field.name not in silent
    }
