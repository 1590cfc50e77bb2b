"""What vLLM chose to compute with, as its server's log tells it."""

import re

from stages.serving.artifact import Kernels

_LINEAR = re.compile(r"(?:Using|Selected) (\w+) for (\w+(?:[ -]\w+)*)")
_BACKEND = re.compile(r"Using (\w+) (?:attention )?backend")
_FLASH = re.compile(r"Using FlashAttention version (\d)")
_GRAPHS = re.compile(r"Graph capturing finished in (\d+) secs")
_COMPILE = re.compile(r"torch\.compile (?:takes|took) ([\d.]+) s in total")
_GRAPH_MODE = re.compile(r"cudagraph_mode['\"]?[:=] ?<?(?:CUDAGraphMode\.)?(\w+)")
_KV_CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")
_PACKED = ("Machete", "Marlin", "Cutlass", "Triton", "Exllama", "Allspark", "Conch", "Bitblas", "Cpu", "CPU", "Torch")


def kernels_of(log: str) -> Kernels:
    """Kernels by layer type, attention, CUDA graphs and compilation; None where the log does not say."""
    linear = {scheme: kernel for kernel, scheme in _LINEAR.findall(log) if _is_kernel(kernel)}
    is_eager = "enforce_eager=True" in log
    return Kernels(
        linear=linear or None,
        attention=_first(_BACKEND, log),
        flash_attention_version=_number(_FLASH, log),
        cuda_graphs=False if is_eager else bool(_GRAPHS.search(log)),
        cuda_graph_mode=_first(_GRAPH_MODE, log),
        compile_s=_number(_COMPILE, log),
        kv_cache_tokens=_number(_KV_CACHE, log),
    )


def _is_kernel(name: str) -> bool:
    return name.endswith("Kernel") or name.startswith(_PACKED)


def _first(pattern: re.Pattern[str], log: str) -> str | None:
    found = pattern.search(log)
    return found[1] if found else None


def _number(pattern: re.Pattern[str], log: str) -> float | None:
    found = _first(pattern, log)
    return None if found is None else float(found.replace(",", ""))
