"""What vLLM reads from and changes in the process it runs in, set before its import and restored when it is closed."""

import os
from collections.abc import Callable
from pathlib import Path

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one call is scheduled alike every time; on a CPU 60 s less to start
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Of the processes of several ranks: a fork would share the threads and connections of a Ray worker.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Read when torch is first imported: threads that spin at every kernel's end make a decode step five times slower
    # as soon as another process wants one of the two cores (0.42 s against 0.08 s).
    "GOMP_SPINCOUNT": "1000",
}


class ProcessState:
    """Sets what vLLM reads at its import; restores that, and what vLLM changes for the whole process."""

    def __init__(self, cache: Path | None, keeps_plan: bool) -> None:
        """``cache`` is for what vLLM makes of a model; ``keeps_plan``: how it laid out memory may be kept there too."""
        self._environment = dict(os.environ)
        set_environment()
        if cache is not None and "VLLM_CACHE_ROOT" not in os.environ:
            os.environ["VLLM_CACHE_ROOT"] = str(cache)
            os.environ["VLLM_ENABLE_STARTUP_PLAN"] = str(int(keeps_plan))
            # What samples and attends is the same in every model: compiled once, not by every engine for 20 s.
            os.environ.setdefault("TRITON_CACHE_DIR", str(cache.parent / "triton"))
        import torch
        import torch._dynamo

        self._set_num_threads: Callable[[int], None] = torch.set_num_threads
        self._compiles_nothing: bool = torch._dynamo.config.disable
        if not torch.cuda.is_available():
            torch._dynamo.config.disable = True  # one sampler function: 7 to 30 s and a C++ compiler, for no gain

    def restore(self) -> None:
        """Bring back environment, thread setting and compilation as they were."""
        import torch

        torch._dynamo.config.disable = self._compiles_nothing
        torch.set_num_threads = self._set_num_threads  # the CPU worker replaces it by one that does nothing
        os.environ.clear()
        os.environ.update(self._environment)


def set_environment() -> None:
    """What vLLM and torch read when they are imported, in a process that will open an engine."""
    os.environ.update(_ENVIRONMENT)
