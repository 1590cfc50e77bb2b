"""Answer and score a range of documents of one lm-eval task with one checkpoint; every response and metric is kept.

The prompts, filters and metrics are lm-eval's own; the engine that answers is ours (``stages/engines``).  One open
session serves every shard of a checkpoint, and a shard's bytes do not depend on what the session answered before.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from stages.fields import execution, identity

VERSION = 1


class EngineKind(Enum):
    """What runs the model: vLLM, or plain transformers for formats vLLM has no kernel for and for tiny models."""

    vllm = "vllm"
    transformers = "transformers"


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """One open engine.  ``kv_cache_gib`` is read by vLLM's CPU build, ``batch_size`` by the transformers engine."""

    kind: EngineKind = identity(EngineKind.vllm)
    dtype: str = identity("bfloat16")
    max_model_len: int = identity(4096)  # tokens, prompt and output together
    tensor_parallel_size: int = identity(1)
    seed: int = identity(0)
    gpu_memory_utilization: float = execution(0.9)
    kv_cache_gib: float | None = execution(None)
    max_num_seqs: int | None = execution(None)
    enforce_eager: bool = execution(False)
    num_cpus: int = execution(1)
    num_gpus: int = execution(0)
    batch_size: int = execution(8)

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"engine.dtype must be bfloat16, float16 or float32; got {self.dtype!r}")
        for name in ("max_model_len", "tensor_parallel_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine.{name} must be at least 1; got {getattr(self, name)}")


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    """How documents become prompts; ``num_fewshot`` None keeps the task's own, ``gen_kwargs`` go over the task's."""

    num_fewshot: int | None = identity(None)
    apply_chat_template: bool = identity(True)
    fewshot_as_multiturn: bool = identity(True)
    system_instruction: str | None = identity(None)
    gen_kwargs: dict[str, Any] = identity(factory=dict)
    fewshot_seed: int = identity(1234)

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"prompt.num_fewshot must not be negative; got {self.num_fewshot}")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """One shard: documents ``start`` to ``stop`` (half open) of the leaf lm-eval task ``task``."""

    task: str = identity()
    prompt: PromptConfig = identity(factory=PromptConfig)
    start: int = identity()
    stop: int = identity()
    num_docs: int | None = execution(None)  # the full size the plan counted on; another size is a DataError
    harness: str = identity()  # lm-eval's version and the digest of extra task files
    include_paths: list[str] = execution(factory=list)
    engine: EngineConfig = identity(factory=EngineConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"task {self.task}: document range {self.start} to {self.stop} is empty")


def session_key(config: EvaluateConfig) -> str:
    """Canonical text of the settings that define one open engine; steps with the same key and checkpoint share it."""
    settings = asdict(config.engine) | {"kind": config.engine.kind.name}
    return json.dumps(settings, sort_keys=True)


@contextmanager
def open_session(config: EvaluateConfig, inputs: Mapping[str, Path]) -> Iterator[Any]:
    """Yield a session: the engine with ``inputs["checkpoint"]`` loaded, and the tasks built so far."""
    raise NotImplementedError
    yield


def evaluate(config: EvaluateConfig, inputs: Mapping[str, Path], out: Path, session: Any) -> Mapping[str, float | None]:
    """Write ``samples.parquet`` and ``task.json``; metrics count documents, missing and truncated ones, and tokens."""
    raise NotImplementedError
