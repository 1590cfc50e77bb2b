"""What NVML says of the GPUs that serve: their state beside every point, and whether somebody else is on them."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stages.errors import ConfigError
from stages.units import MIB

_IDLE_MIB = 1500  # a driver's own share; a model takes more
# Reasons for lower clocks that are the machine's trouble: hardware slowdown, thermal (software, hardware), power brake.
_SLOWED = 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU at one moment; what its driver does not tell is None."""

    product: str
    driver: str
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    memory_used_mib: float
    memory_free_mib: float
    num_processes: int
    is_slowed: bool | None  # by heat or a failing power supply, not by its ordinary power limit


def read_gpus(number: int) -> list[GpuState] | None:
    """The state of the first ``number`` GPUs that this process may use; None without a driver that tells it."""
    if number == 0:
        return None
    with nvml_library() as nvml:
        if nvml is None:
            return None
        try:
            return [_state(nvml, handle) for handle in visible_handles(nvml)[:number]] or None
        except nvml.NVMLError:  # memory that is the host's own, or a name that CUDA alone understands
            return None


def compute_capability() -> float | None:
    """Of the first GPU that this process may use; None where no driver tells it."""
    with nvml_library() as nvml:
        if nvml is None:
            return None
        try:
            handles = visible_handles(nvml)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handles[0]) if handles else (None, None)
        except nvml.NVMLError:
            return None
    return None if major is None else float(f"{major}.{minor}")


def num_visible_gpus() -> int:
    """GPUs that this process may use, as far as a driver tells."""
    with nvml_library() as nvml:
        try:
            return 0 if nvml is None else len(visible_handles(nvml))
        except nvml.NVMLError:
            return 0


@dataclass(frozen=True, slots=True)
class HeldGpu:
    """Which GPU of its host, whatever CUDA_VISIBLE_DEVICES makes of its number."""

    index: int
    uuid: str


def held_gpus(number: float) -> list[HeldGpu] | None:
    """The first ``number`` GPUs that this process may use; None if no driver tells, or not all are on this host."""
    if number == 0:
        return []
    with nvml_library() as nvml:
        if nvml is None:
            return None
        try:
            handles = visible_handles(nvml)[: math.ceil(number)]
            found = [HeldGpu(nvml.nvmlDeviceGetIndex(each), _text(nvml.nvmlDeviceGetUUID(each))) for each in handles]
        except nvml.NVMLError:
            return None
    return found if len(found) == math.ceil(number) else None


def wait_until_idle(number: int, patience_s: float = 30.0) -> list[GpuState] | None:
    """Their state once nobody is on them, or when patience ends: a server that was just stopped frees memory late."""
    deadline = time.monotonic() + patience_s
    while (states := read_gpus(number)) is not None:
        if not any(map(is_busy, states)) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return states


def check_gpus(states: Sequence[GpuState] | None, product: str, driver: str | None, allow_busy: bool) -> None:
    """Raise ConfigError for GPUs that are not the planned ones, or on which somebody else computes."""
    if states is None:
        raise ConfigError(f"no NVIDIA driver answers here, but the plan is for {product}: run on such a machine")
    for state in states:
        if product.lower() not in state.product.lower():
            raise ConfigError(f"the GPU here is {state.product}, not the planned {product}: choose gpu=NAME for it")
        if driver not in (None, state.driver):
            raise ConfigError(f"driver {state.driver} is here, not the planned {driver}: plan again where it runs")
        if is_busy(state) and not allow_busy:
            raise ConfigError(
                f"{state.product} is busy: {state.num_processes} processes, {state.memory_used_mib:.0f} MiB in use; "
                "wait until it is free, or set server.allow_busy_gpu=true"
            )


def check_fits(states: Sequence[GpuState], needed_gib: float, utilization: float) -> None:
    """Raise ConfigError if a rank's share of the weights is more than vLLM may take of its GPU."""
    free_gib = min(state.memory_free_mib for state in states) / 1024
    if needed_gib > free_gib * utilization:
        raise ConfigError(
            f"the model needs {needed_gib:.1f} GiB on each GPU, of which {free_gib * utilization:.1f} may be used: "
            "raise engine.tensor_parallel_size, lower engine.max_model_len, or choose a smaller format"
        )


def is_busy(state: GpuState) -> bool:
    """Whether somebody computes there, or holds its memory."""
    return state.num_processes > 0 or state.memory_used_mib > _IDLE_MIB


@contextmanager
def nvml_library() -> Iterator[Any]:
    """NVIDIA's management library; None where it or a driver is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def visible_handles(nvml: Any) -> list[Any]:
    """Of the GPUs that CUDA_VISIBLE_DEVICES leaves, by index or UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]


def _state(nvml: Any, handle: Any) -> GpuState:
    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except nvml.NVMLError:  # virtual GPUs and containers may tell less
            return None

    memory, power_mw = nvml.nvmlDeviceGetMemoryInfo(handle), ask(nvml.nvmlDeviceGetPowerUsage)
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    return GpuState(
        product=_text(nvml.nvmlDeviceGetName(handle)),
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        sm_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        memory_used_mib=memory.used / MIB,
        memory_free_mib=memory.free / MIB,
        num_processes=len(ask(nvml.nvmlDeviceGetComputeRunningProcesses) or []),
        is_slowed=None if reasons is None else bool(reasons & _SLOWED),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
