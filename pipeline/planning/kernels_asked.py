"""What the planned devices compute each trial's format with, by the table of vLLM's kernels, before any work."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.planning.plan import TrialPlan
from pipeline.planning.published import Published
from stages.checkpoints.formats import Format
from stages.checkpoints.kernels import (
    BACKEND,
    EMULATION,
    SIMULATED,
    UNKNOWN,
    Answer,
    Device,
    answer,
    answer_all,
    emulated,
    installed_version,
    varies,
)
from stages.checkpoints.ranks import fitting_groups, fitting_ranks, misfits, why_not_split
from stages.checkpoints.sizes import LayerSize, ModelSizes
from stages.evaluate.config import EngineConfig, EngineKind
from stages.quantize import is_targeted, weight_format

_FETCHED_LATER = "what lies on a hub is known when it is fetched, or by the scheme that its place declares"
_ONE_PROCESS = "set engine.tensor_parallel_size=1 and engine.pipeline_parallel_size=1"


def versions() -> dict[bool, str]:
    """vLLM's version on CPUs (True) and on GPUs: what is installed here, else what the table is of."""
    return {is_cpu: installed_version(is_cpu) for is_cpu in (True, False)}


def with_emulation(config: Config, published: Published | None, known: Mapping[bool, str]) -> EngineConfig:
    """Its engine, told to emulate where that is allowed and nothing else computes what the format says."""
    engine, formats = config.engine, _formats(config, published)
    if len(formats) != 1 or not engine.allow_emulation or engine.linear_backend is not None:
        return engine
    if emulated(formats[0], _device(config, known), engine.dtype) is None:
        return engine
    return replace(engine, vllm_args={**engine.vllm_args, BACKEND: EMULATION})


def computed(config: Config, published: Published | None, known: Mapping[bool, str], trial: str) -> Answer | None:
    """What its formats are computed with; None where vLLM computes none.  Raises UserError where one does not run."""
    engine = config.engine
    _check_rotations(config, published, trial)
    found = answer_all(_formats(config, published), _device(config, known), engine.dtype, engine.linear_backend)
    if found is None:
        is_foreign = published is not None and engine.kind is EngineKind.vllm
        return Answer(label="as published", unknown=_FETCHED_LATER) if is_foreign else None
    if found.refusal is not None:
        raise UserError(f"{trial} ({found.label}) does not run on {_place(config)}: {found.refusal}")
    if found.usual == (SIMULATED,) and engine.num_ranks > 1:
        raise UserError(f"{trial}: {found.label} is simulated on a CPU, in one process; {_ONE_PROCESS}")
    return found


def check_split(config: Config, planned: TrialPlan, known: Mapping[bool, str]) -> None:
    """Raise UserError where the ranks of vLLM on GPUs would divide a layer within a group or block of its format."""
    formats, num_ranks = _formats(config, planned.published), config.engine.tensor_parallel_size
    if len(formats) != 1 or not config.engine.on_gpu:  # of a mixture it is not known which layer has which
        return
    of_shape = ModelSizes.of_shape(config.model.shape) if config.model.shape is not None else None
    for sizes in filter(None, (of_shape, planned.sizes)):
        layers = {name: size for name, size in sizes.linears.items() if _is_quantized(name, config, planned.published)}
        if (why := why_not_split(formats[0], sizes, layers, num_ranks)) is not None:
            ways = [*_fewer_ranks(formats[0], sizes, layers, num_ranks)]
            ways += _other_recipes(config, formats[0], sizes, layers, known) if planned.published is None else []
            raise UserError(f"{planned.trial.name}: {why}; set {', or '.join(ways) or 'another recipe'}")


def effective(
    config: Config, published: Published | None, found: Answer | None, known: Mapping[bool, str]
) -> str | None:
    """What makes its answers another result than those of a GPU that computes what the format says."""
    if found is not None and found.unknown is None:
        return found.effective
    formats, device = _formats(config, published), _device(config, known)
    is_foreign = not formats and published is not None and config.engine.kind is EngineKind.vllm
    if device.is_cpu or device.capability is None or not (is_foreign or any(map(varies, formats))):
        return None
    return f"{UNKNOWN} vLLM {device.version} on compute capability {device.capability:g}"


def _check_rotations(config: Config, published: Published | None, trial: str) -> None:
    engine = config.engine
    if published is None or not published.rotates or engine.kind is not EngineKind.vllm:
        return
    if not engine.on_gpu:
        raise UserError(
            f"{trial} rotates activations at run time, which is not simulated on a CPU: choose engine=vllm_gpu, or "
            "engine=transformers"
        )
    if engine.tensor_parallel_size > 1:
        raise UserError(
            f"{trial} rotates activations at run time, which vLLM does on one GPU alone: set "
            "engine.tensor_parallel_size=1, or choose engine=transformers"
        )


def _is_quantized(name: str, config: Config, published: Published | None) -> bool:
    if published is not None:
        return name in published.layers
    return is_targeted(name, config.recipe.targets, config.recipe.ignore)


def _fewer_ranks(
    quantized: Format, sizes: ModelSizes, layers: Mapping[str, LayerSize], num_ranks: int
) -> Sequence[str]:
    fewer = fitting_ranks(quantized, sizes, layers, num_ranks)
    return [f"engine.tensor_parallel_size={' or '.join(map(str, fewer))}"] if fewer else []


def _other_recipes(
    config: Config, quantized: Format, sizes: ModelSizes, layers: Mapping[str, LayerSize], known: Mapping[bool, str]
) -> Sequence[str]:
    """Smaller groups that have a kernel there, and fewer layers."""
    engine = config.engine
    groups = [
        other.weights.group_size
        for other in fitting_groups(quantized, sizes, layers, engine.tensor_parallel_size)
        if not answer(other, _device(config, known), engine.dtype, engine.linear_backend).refusal
    ]
    wrong = misfits(quantized, layers, sizes.heads, engine.tensor_parallel_size)
    names = dict.fromkeys(each.name.rpartition(".")[2] for each in wrong)
    ignored = f"recipe.ignore with {' and '.join(f're:.*{name}' for name in names)}"
    return [*(f"recipe.group_size={size}" for size in groups[:1]), ignored]


def _formats(config: Config, published: Published | None) -> tuple[Format, ...]:
    """Of a checkpoint on a hub they are not known before it is fetched."""
    if config.engine.kind is not EngineKind.vllm:
        return ()
    if published is not None:
        return published.formats
    made = weight_format(config.recipe)
    return () if made is None else (made,)


def _device(config: Config, known: Mapping[bool, str]) -> Device:
    is_cpu = not config.engine.on_gpu
    return Device(is_cpu, None if is_cpu else config.gpu.capability, known[is_cpu])


def _place(config: Config) -> str:
    if not config.engine.on_gpu:
        return "a CPU"
    return f"gpu={config.gpu.name} (compute capability {config.gpu.capability or 0:g})"
