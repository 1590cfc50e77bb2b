"""Read stored tensors a block of rows at a time, so that memory does not grow with the model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoints.headers import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 2**27


class Reader:
    """Of the tensors ``infos``, by any names; files stay open until the end of the block."""

    def __init__(self, infos: Mapping[str, tuple[str, TensorInfo]]) -> None:
        self._infos = infos
        self._files: dict[Path, Any] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.__exit__(None, None, None)

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def read(self, name: str, rows: slice | None = None) -> "Tensor":
        """A tensor, or some of its rows."""
        stored, info = self._infos[name]
        if info.file not in self._files:
            from safetensors import safe_open

            self._files[info.file] = safe_open(info.file, framework="pt").__enter__()
        opened = self._files[info.file]
        tensor: Tensor = opened.get_tensor(stored) if rows is None else opened.get_slice(stored)[rows]
        return tensor


def blocks(shape: tuple[int, ...], num_row_bytes: float, multiple: int = 1) -> Iterator[slice | None]:
    """Slices over the first dimension, of ``multiple`` rows or more, each of at most BLOCK_BYTES where that goes."""
    if not shape or shape[0] * num_row_bytes <= BLOCK_BYTES:
        yield None
        return
    step = max(1, int(BLOCK_BYTES / num_row_bytes) // multiple) * multiple
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
