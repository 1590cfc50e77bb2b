"""How vLLM is started: its arguments, its part of the GPUs' memory, and where it keeps what it makes of a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoints.headers import num_stored_bytes, read_tensor_infos
from stages.errors import CheckpointError
from stages.evaluate.digests import digest
from stages.evaluate.engines.family import cache_folder
from stages.gpu_memory import utilization
from stages.units import GIB

if TYPE_CHECKING:
    from stages.evaluate.config import EngineConfig

RANK = "stages.evaluate.engines.rank.Rank"  # imported by each of an engine's processes


@dataclass(frozen=True, slots=True)
class Start:
    """What an engine is given beside its model.

    ``cache`` is None where the checkpoint is none, which vLLM will say better.
    """

    config: "EngineConfig"
    gpu_share: float
    cache: Path | None

    @classmethod
    def of(cls, checkpoint: Path, config: "EngineConfig") -> "Start":
        return cls(config, _gpu_share(checkpoint, config), _cache(checkpoint, config))

    @property
    def keeps_plan(self) -> bool:
        """Whether vLLM may lay out memory next time as it did this time: it had its GPU alone, and all it asked for."""
        config = self.config
        return config.on_gpu and config.kv_cache_gib is None and self.gpu_share == config.memory_share


def llm_arguments(model: Path, start: Start, is_cpu: bool) -> dict[str, Any]:
    """The arguments of ``vllm.LLM``."""
    config = start.config
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "seed": config.seed,
        "gpu_memory_utilization": start.gpu_share,
        "enforce_eager": config.enforce_eager or is_cpu,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if config.pipeline_parallel_size > 1:
        arguments |= {"pipeline_parallel_size": config.pipeline_parallel_size, "distributed_executor_backend": "ray"}
    elif config.num_ranks > 1:
        arguments |= {"distributed_executor_backend": "mp", "worker_extension_cls": RANK}
    if config.max_num_seqs is not None:
        arguments["max_num_seqs"] = config.max_num_seqs
    if config.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * GIB)
    if is_cpu:
        arguments.setdefault("distributed_executor_backend", "uni")  # with enforce_eager: 35 s instead of 90 to 115 s
        arguments["block_size"] = 32  # of vLLM's 128, up to 127 tokens of a context would be computed for every choice
    return arguments | config.vllm_args


def _gpu_share(checkpoint: Path, config: "EngineConfig") -> float:
    """What vLLM may take of each GPU: no more than is free, or it would refuse to start.

    Where an engine is spread over nodes its GPUs are not those that this process sees.
    """
    if not config.on_gpu or config.pipeline_parallel_size > 1:
        return config.memory_share
    weights_gib = num_stored_bytes(read_tensor_infos(checkpoint)) / GIB
    return utilization(config.memory_share, config.num_gpus, weights_gib / config.num_ranks)


def _cache(checkpoint: Path, config: "EngineConfig") -> Path | None:
    """What vLLM keeps of its memory's layout does not say how much it was allowed: that is in the folder's name."""
    try:
        others = f"-{digest(config.vllm_args)[:8]}" if config.vllm_args else ""
        return cache_folder(checkpoint, f"{config.memory_share:g}-{config.max_num_seqs or 'auto'}{others}")
    except (CheckpointError, OSError):
        return None
