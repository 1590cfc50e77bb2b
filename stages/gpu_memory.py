"""How much of its GPUs' memory an engine may take, and who is in the way."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stages.errors import ConfigError, EngineError
from stages.gpu import GpuState, nvml_library, read_gpus, visible_handles
from stages.units import GIB, MIB

KEPT_FREE = 0.05  # of what is free, for the driver's own and what vLLM does not count
PATIENCE_S = 30.0  # a process that has just ended frees its memory late

ReadGpus = Callable[[int], list[GpuState] | None]


def memory_used_mib(number: int, read: ReadGpus = read_gpus) -> list[int] | None:
    """What is taken of the first ``number`` GPUs that this process may use; None without NVIDIA's driver."""
    states = read(number)
    return None if states is None else [round(state.memory_used_mib) for state in states]


def utilization(
    asked: float, number: int, needed_gib: float, read: ReadGpus = read_gpus, patience_s: float = PATIENCE_S
) -> float:
    """``asked``, or less: a share of all memory that is free on each of the first ``number`` GPUs.

    Raises ConfigError for weights (``needed_gib`` a GPU) that have no room on an empty one, and EngineError, naming
    what is in the way, if they find none within ``patience_s``.
    """
    deadline = time.monotonic() + patience_s
    while states := read(number):
        _check_fits_when_empty(states, asked, needed_gib)
        shares = [min(asked, (1 - KEPT_FREE) * state.memory_free_mib / _total_mib(state)) for state in states]
        needed = [needed_gib * GIB / MIB / _total_mib(state) for state in states]
        lacking = [index for index in range(len(states)) if shares[index] < needed[index]]
        if not lacking:
            return min(shares)
        if time.monotonic() > deadline:
            raise EngineError(_in_the_way(lacking[0], states[lacking[0]], needed_gib))
        time.sleep(0.5)
    return asked


def _total_mib(state: GpuState) -> float:
    return state.memory_used_mib + state.memory_free_mib


def _check_fits_when_empty(states: Sequence[GpuState], asked: float, needed_gib: float) -> None:
    allowed_gib = asked * min(map(_total_mib, states)) * MIB / GIB
    if needed_gib > allowed_gib:
        raise ConfigError(
            f"the weights need {needed_gib:.1f} GiB of each GPU, and its share {asked:g} allows {allowed_gib:.1f}: "
            "raise engine.gpu_memory_utilization, gpus_per_rank or tensor_parallel_size, or choose a smaller format"
        )


def _in_the_way(index: int, state: GpuState, needed_gib: float) -> str:
    free_gib, total_gib = state.memory_free_mib * MIB / GIB, _total_mib(state) * MIB / GIB
    found = ", ".join(occupants(index)) or "nothing that the driver shows"
    return (
        f"GPU {index} ({state.product}): the weights need {needed_gib:.1f} GiB, but {free_gib:.1f} of {total_gib:.1f} "
        f"GiB are free; in the way: {found}; end that, or wait until it has ended"
    )


def occupants(index: int) -> list[str]:
    """The processes that hold memory of a GPU, as far as its driver tells."""
    with nvml_library() as nvml:
        if nvml is None:
            return []
        with contextlib.suppress(nvml.NVMLError):
            return [_occupant(each) for each in nvml.nvmlDeviceGetComputeRunningProcesses(visible_handles(nvml)[index])]
    return []


def _occupant(process: Any) -> str:
    """In a container the driver may know a process by a number of the host's, and tell no memory."""
    parts = [f"pid {process.pid}"]
    with contextlib.suppress(OSError):
        parts.append(Path(f"/proc/{process.pid}/comm").read_text().strip())
    if process.usedGpuMemory:
        parts.append(f"{process.usedGpuMemory / GIB:.1f} GiB")
    return " ".join(parts)
