"""Read what a checkpoint directory holds from its safetensors headers, without torch and without reading weights."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from stages.checkpoints.files import INDEX, weight_files, weight_map
from stages.errors import CheckpointError

_CHUNK_BYTES = 2**24
_NUM_BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
}


class TensorInfo(NamedTuple):
    """One stored tensor: where it lies, its safetensors dtype (``BF16``, ``I8``, ...), shape and size in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    offset: int  # bytes from the start of its file


def read_tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of the checkpoint by name, sorted; CheckpointError for a damaged, missing or duplicate part."""
    infos: dict[str, TensorInfo] = {}
    for file in weight_files(path):
        header = _read_header(file)
        if twice := infos.keys() & header.keys():
            raise CheckpointError(f"{path}: {min(twice)} is stored in two files")
        infos |= header
    _check_index(path, infos)
    return dict(sorted(infos.items()))


def num_stored_bytes(infos: dict[str, TensorInfo]) -> int:
    """Bytes of all the tensors, headers not counted."""
    return sum(info.num_bytes for info in infos.values())


def digest_of(info: TensorInfo) -> str:
    """Sha256 of a tensor's bytes."""
    digest = hashlib.sha256()
    with info.file.open("rb") as stream:
        stream.seek(info.offset)
        for start in range(0, info.num_bytes, _CHUNK_BYTES):
            digest.update(stream.read(min(_CHUNK_BYTES, info.num_bytes - start)))
    return digest.hexdigest()


def _read_header(file: Path) -> dict[str, TensorInfo]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            num_header_bytes = int.from_bytes(stream.read(8), "little")
            # A corrupted length must not make us read the whole file as a header.
            raw = stream.read(num_header_bytes) if num_header_bytes <= size - 8 else b""
        header = json.loads(raw)
        header.pop("__metadata__", None)
        infos = {name: _tensor_info(file, entry, 8 + num_header_bytes) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: unreadable safetensors header; fetch the file again") from error
    _check_places(file, infos)
    expected = 8 + num_header_bytes + num_stored_bytes(infos)
    if size != expected:
        raise CheckpointError(f"{file}: {size} bytes where its header promises {expected}; fetch the file again")
    return infos


def _tensor_info(file: Path, entry: dict[str, Any], num_bytes_before: int) -> TensorInfo:
    start, end = entry["data_offsets"]
    return TensorInfo(file, entry["dtype"], tuple(entry["shape"]), end - start, num_bytes_before + start)


def _check_places(file: Path, infos: dict[str, TensorInfo]) -> None:
    """Each tensor has as many bytes as its type and shape need, right behind the one before it."""
    end = None
    for name, info in sorted(infos.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        needed = math.prod(info.shape) * _NUM_BITS.get(info.dtype, 0) // 8
        if info.dtype in _NUM_BITS and needed != info.num_bytes:
            raise CheckpointError(
                f"{file}: its header gives {name}, {info.dtype} of shape {list(info.shape)}, {info.num_bytes} bytes "
                f"where it needs {needed}; fetch or save the file again"
            )
        if end is not None and info.offset != end:
            raise CheckpointError(f"{file}: its header puts {name} where another tensor is; fetch or save it again")
        end = info.offset + info.num_bytes


def _check_index(path: Path, infos: dict[str, TensorInfo]) -> None:
    if not (path / INDEX).is_file():
        return
    named = weight_map(path / INDEX)
    missing = sorted(name for name, file in named.items() if name not in infos or infos[name].file.name != file)
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} tensors of the index are missing, first {missing[0]}")


def num_elements(info: TensorInfo) -> int:
    """Number of elements as stored (a packed tensor counts its words)."""
    return math.prod(info.shape)
