"""Another CPU than this machine's: as ``sitecustomize.py`` in an environment it changes each Python that starts there.

``IMITATED_CPU=avx2`` hides AVX512, ``avx512`` hides BF16 instructions and AMX: from vLLM, which picks its library by
what PyTorch says, from PyTorch's own kernels, and from oneDNN.  More than the machine has cannot be imitated.
"""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HIDDEN = {
    "avx2": ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"),
    "avx512": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
}
LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}


class Imitating(MetaPathFinder):
    """Lets ``torch.cpu`` be imported, and then denies what is hidden."""

    def __init__(self, hidden: tuple[str, ...]) -> None:
        self._hidden = hidden

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != "torch.cpu":
            return None
        spec = PathFinder.find_spec(fullname, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = Denying(spec.loader, self._hidden)
        return spec


class Denying(Loader):
    """Another loader, and what its module shall deny."""

    def __init__(self, loader: Loader, hidden: tuple[str, ...]) -> None:
        self._loader, self._hidden = loader, hidden

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for name in self._hidden:
            setattr(module, name, lambda: False)


if kind := os.environ.get("IMITATED_CPU"):
    os.environ.update(LIMITS[kind])
    sys.meta_path.insert(0, Imitating(HIDDEN[kind]))
