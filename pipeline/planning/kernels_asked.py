"""What the planned devices compute each trial's format with, by the table of vLLM's kernels, before any work."""

from collections.abc import Mapping
from dataclasses import replace

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.planning.published import Published
from stages.checkpoints.formats import Format
from stages.checkpoints.kernels import (
    BACKEND,
    EMULATION,
    UNKNOWN,
    Answer,
    Device,
    answer,
    emulated,
    installed_version,
    varies,
)
from stages.evaluate.config import EngineConfig, EngineKind
from stages.quantize import weight_format


def versions() -> dict[bool, str]:
    """vLLM's version on CPUs (True) and on GPUs: what is installed here, else what the table is of."""
    return {is_cpu: installed_version(is_cpu) for is_cpu in (True, False)}


def with_emulation(config: Config, published: Published | None, known: Mapping[bool, str]) -> EngineConfig:
    """Its engine, told to emulate where that is allowed and nothing else computes what the format says."""
    engine, quantized = config.engine, _format(config, published)
    if quantized is None or not engine.allow_emulation or engine.linear_backend is not None:
        return engine
    if emulated(quantized, _device(config, known), engine.dtype) is None:
        return engine
    return replace(engine, vllm_args={**engine.vllm_args, BACKEND: EMULATION})


def computed(config: Config, published: Published | None, known: Mapping[bool, str], trial: str) -> Answer | None:
    """What its format is computed with; None where vLLM computes none.  Raises UserError where it does not run."""
    if (quantized := _format(config, published)) is None:
        return None
    found = answer(quantized, _device(config, known), config.engine.dtype, config.engine.linear_backend)
    if found.refusal is not None:
        raise UserError(f"{trial} ({found.label}) does not run on {_place(config)}: {found.refusal}")
    return found


def effective(
    config: Config, published: Published | None, found: Answer | None, known: Mapping[bool, str]
) -> str | None:
    """What makes its answers another result than those of a GPU that computes what the format says."""
    quantized, device = _format(config, published), _device(config, known)
    if found is not None and found.unknown is None:
        return found.effective
    is_foreign = quantized is None and published is not None and config.engine.kind is EngineKind.vllm
    may_vary = is_foreign or (quantized is not None and varies(quantized))
    if device.is_cpu or device.capability is None or not may_vary:
        return None
    return f"{UNKNOWN} vLLM {device.version} on compute capability {device.capability:g}"


def _format(config: Config, published: Published | None) -> Format | None:
    """Of a checkpoint on a hub, and of one of a form or mixture that the table does not have, it is not known."""
    if config.engine.kind is not EngineKind.vllm:
        return None
    return weight_format(config.recipe) if published is None else published.format


def _device(config: Config, known: Mapping[bool, str]) -> Device:
    is_cpu = not config.engine.on_gpu
    return Device(is_cpu, None if is_cpu else config.gpu.capability, known[is_cpu])


def _place(config: Config) -> str:
    if not config.engine.on_gpu:
        return "a CPU"
    return f"gpu={config.gpu.name} (compute capability {config.gpu.capability or 0:g})"
