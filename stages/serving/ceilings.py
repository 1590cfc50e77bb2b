"""Measure what a device can do at most: memory bandwidth by a copy, matrix rates by products of square matrices."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import EngineError
from stages.gpu import check_gpus, wait_until_idle
from stages.serving.artifact import write_ceilings
from stages.serving.config import CeilingsConfig
from stages.units import GIB

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
_REPEATS, _ENOUGH_S = 10, 1.0


def ceilings(config: CeilingsConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``ceilings.json``: GB/s, and TFLOP/s in fp32, bf16, fp8, int8 and fp4; null where torch has none here.

    Measured in a process of its own, which leaves nothing on the GPU.
    """
    if config.on_gpu:
        check_gpus(wait_until_idle(1), config.device, config.driver, config.allow_busy_gpu)
    command = [sys.executable, "-m", "stages.serving.ceilings", "cuda" if config.on_gpu else "cpu"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"torch could not measure {config.device}: {last}")
    found: dict[str, float | None] = json.loads(done.stdout.splitlines()[-1])
    write_ceilings(out, config.device, found)
    return found


def measure(kind: str) -> dict[str, float | None]:
    """The ceilings of this process's first GPU (``cuda``), or of its processor (``cpu``)."""
    import torch

    device, is_gpu = torch.device(kind), kind == "cuda"
    size = 8192 if is_gpu else 512  # without BF16 units a processor takes 5 s for 1024
    rates = {f"{name}_tflop_s": _rate(product, size, device) for name, product in PRODUCTS.items()}
    return {"bandwidth_gb_s": _bandwidth(device, GIB if is_gpu else GIB // 8), **rates}


def _bandwidth(device: Any, num_bytes: int) -> float:
    """A copy reads and writes."""
    import torch

    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _fastest_s(lambda: target.copy_(source), device) / 1e9


def _rate(product: Callable[[int, Any], Callable[[], "Tensor"]], size: int, device: Any) -> float | None:
    try:
        return 2 * size**3 / _fastest_s(product(size, device), device) / 1e12
    except (RuntimeError, NotImplementedError, AttributeError, ValueError):
        return None


def _fp32(size: int, device: Any) -> Callable[[], "Tensor"]:
    import torch

    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return lambda: a @ b


def _bf16(size: int, device: Any) -> Callable[[], "Tensor"]:
    import torch

    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    return lambda: a @ b


def _fp8(size: int, device: Any) -> Callable[[], "Tensor"]:
    import torch

    a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, b.t(), scale, scale, out_dtype=torch.bfloat16)


def _int8(size: int, device: Any) -> Callable[[], "Tensor"]:
    import torch

    a, b = (torch.randint(-127, 127, (size, size), device=device, dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b.t())


def _fp4(size: int, device: Any) -> Callable[[], "Tensor"]:
    """Two codes a byte, and a scale for every 16 as NVFP4 has them; MXFP4 runs at the same rate."""
    import torch

    shape = (size, size // 2)
    a, b = (torch.randint(0, 256, shape, device=device, dtype=torch.uint8).view(torch.float4_e2m1fn_x2) for _ in "ab")
    scales = torch.ones(size * size // 16, device=device).to(torch.float8_e4m3fn)
    return lambda: torch._scaled_mm(a, b.t(), scales, scales, out_dtype=torch.bfloat16)


# What weight formats call their arithmetic, and what everything else is multiplied in.
PRODUCTS = {"fp32": _fp32, "bf16": _bf16, "fp8": _fp8, "int8": _int8, "fp4": _fp4}


def _fastest_s(work: Callable[[], object], device: Any) -> float:
    """Seconds of the fastest of several: what the device can do."""
    fastest_s, spent_s = float("inf"), 0.0
    _once_s(work, device)
    for _ in range(_REPEATS):
        took_s = _once_s(work, device)
        fastest_s, spent_s = min(fastest_s, took_s), spent_s + took_s
        if spent_s > _ENOUGH_S:
            break
    return fastest_s


def _once_s(work: Callable[[], object], device: Any) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
