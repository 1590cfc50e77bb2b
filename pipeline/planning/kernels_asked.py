"""What the planned devices compute each trial's format with, by the table of vLLM's kernels, before any work."""

from collections.abc import Mapping
from dataclasses import replace

from pipeline.config.schema import Config
from pipeline.errors import UserError
from stages.checkpoints.formats import Format
from stages.checkpoints.kernels import (
    BACKEND,
    EMULATION,
    SIMULATED,
    UNKNOWN,
    Answer,
    Device,
    answer,
    emulated,
    installed_version,
    varies,
)
from stages.checkpoints.ranks import fitting_groups, fitting_ranks, misfits, why_not_split
from stages.checkpoints.sizes import LayerSize, ModelSizes
from stages.evaluate.config import EngineConfig, EngineKind
from stages.quantize import is_targeted, weight_format


def versions() -> dict[bool, str]:
    """vLLM's version on CPUs (True) and on GPUs: what is installed here, else what the table is of."""
    return {is_cpu: installed_version(is_cpu) for is_cpu in (True, False)}


def with_emulation(config: Config, known: Mapping[bool, str]) -> EngineConfig:
    """Its engine, told to emulate where that is allowed and nothing else computes what the format says."""
    engine, quantized = config.engine, _format(config)
    if quantized is None or not engine.allow_emulation or engine.linear_backend is not None:
        return engine
    if emulated(quantized, _device(config, known), engine.dtype) is None:
        return engine
    return replace(engine, vllm_args={**engine.vllm_args, BACKEND: EMULATION})


def computed(config: Config, known: Mapping[bool, str], trial: str) -> Answer | None:
    """What its format is computed with; None where vLLM computes none.  Raises UserError where it does not run."""
    if (quantized := _format(config)) is None:
        return None
    found = answer(quantized, _device(config, known), config.engine.dtype, config.engine.linear_backend)
    if found.refusal is not None:
        raise UserError(f"{trial} ({found.label}) does not run on {_place(config)}: {found.refusal}")
    if found.usual == (SIMULATED,) and config.engine.num_ranks > 1:
        raise UserError(
            f"{trial}: {found.label} is simulated on a CPU, in one process; set engine.tensor_parallel_size=1 and "
            "engine.pipeline_parallel_size=1"
        )
    return found


def check_split(config: Config, sizes: ModelSizes | None, known: Mapping[bool, str], trial: str) -> None:
    """Raise UserError where the ranks of vLLM on GPUs would divide a layer within a group or block of its format."""
    quantized, engine, recipe = _format(config), config.engine, config.recipe
    if quantized is None or not engine.on_gpu:
        return
    of_shape = ModelSizes.of_shape(config.model.shape) if config.model.shape is not None else None
    for each in filter(None, (of_shape, sizes)):
        layers = {name: size for name, size in each.linears.items() if is_targeted(name, recipe.targets, recipe.ignore)}
        if (why := why_not_split(quantized, each, layers, engine.tensor_parallel_size)) is not None:
            raise UserError(f"{trial}: {why}; {_instead(config, quantized, each, layers, known)}")


def _instead(
    config: Config, quantized: Format, sizes: ModelSizes, layers: Mapping[str, LayerSize], known: Mapping[bool, str]
) -> str:
    """What would do: fewer ranks, smaller groups that have a kernel there, or fewer layers."""
    num_ranks = config.engine.tensor_parallel_size
    fewer = fitting_ranks(quantized, sizes, layers, num_ranks)
    groups = [
        other.weights.group_size
        for other in fitting_groups(quantized, sizes, layers, num_ranks)
        if not answer(other, _device(config, known), config.engine.dtype, config.engine.linear_backend).refusal
    ]
    wrong = dict.fromkeys(each.name.rpartition(".")[2] for each in misfits(quantized, layers, sizes.heads, num_ranks))
    ways = [f"engine.tensor_parallel_size={' or '.join(map(str, fewer))}"] if fewer else []
    ways += [f"recipe.group_size={groups[0]}"] if groups else []
    ways += [f"recipe.ignore with {' and '.join(f're:.*{name}' for name in wrong)}"]
    return f"set {', or '.join(ways)}"


def effective(config: Config, found: Answer | None, known: Mapping[bool, str]) -> str | None:
    """What makes its answers another result than those of a GPU that computes what the format says."""
    quantized, device = _format(config), _device(config, known)
    if found is None or quantized is None or found.unknown is None:
        return None if found is None else found.effective
    if device.is_cpu or device.capability is None or not varies(quantized):
        return None
    return f"{UNKNOWN} vLLM {device.version} on compute capability {device.capability:g}"


def _format(config: Config) -> Format | None:
    return weight_format(config.recipe) if config.engine.kind is EngineKind.vllm else None


def _device(config: Config, known: Mapping[bool, str]) -> Device:
    is_cpu = not config.engine.on_gpu
    return Device(is_cpu, None if is_cpu else config.gpu.capability, known[is_cpu])


def _place(config: Config) -> str:
    if not config.engine.on_gpu:
        return "a CPU"
    return f"gpu={config.gpu.name} (compute capability {config.gpu.capability or 0:g})"
