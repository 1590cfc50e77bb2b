"""A checkpoint in another tool's form as compressed-tensors stores it: the same codes and scales, packed otherwise."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from stages.checkpoints.headers import TensorInfo, num_stored_bytes, read_tensor_infos
from stages.checkpoints.quantized import quantized_layers
from stages.errors import CheckpointError, ConfigError, one_line
from stages.units import GIB

CONVERTED = ("awq",)


@contextmanager
def as_compressed(model_dir: Path, quantization: Mapping[str, Any]) -> Iterator[Path]:
    """A directory with the checkpoint in compressed-tensors' form, for the time that it takes to load it.

    Raises CheckpointError for a variant that cannot be converted, ConfigError where the disk has no room for it.
    """
    if quantization.get("quant_method") not in CONVERTED:
        yield model_dir
        return
    infos = read_tensor_infos(model_dir)
    _check_room(model_dir, infos)
    with TemporaryDirectory(prefix="converted_") as scratch:
        out = Path(scratch) / model_dir.name
        try:
            _convert(model_dir, out, quantization, infos)
        except (ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{model_dir}: its AWQ layers cannot be read: {one_line(error)}") from error
        yield out


def _convert(model_dir: Path, out: Path, quantization: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> None:
    """What is not quantized is known by what is stored: ``modules_to_not_convert`` are parts of names."""
    from compressed_tensors.entrypoints.convert import AutoAWQConverter, convert_checkpoint

    layers = quantized_layers(infos)
    matrices = [name.removesuffix(".weight") for name, info in infos.items() if len(info.shape) > 1]
    converter = AutoAWQConverter(
        bits=quantization.get("bits", 4),
        group_size=quantization.get("group_size", 128),
        zero_point=quantization.get("zero_point", True),
        version=str(quantization.get("version", "gemm")).lower(),
        ignore=[name for name in dict.fromkeys(["lm_head", *matrices]) if name not in layers and not _is_part(name)],
    )
    convert_checkpoint(model_dir, out, converter, device="cpu")


def _is_part(name: str) -> bool:
    return name.rpartition(".")[2] in ("qweight", "qzeros", "scales")


def _check_room(model_dir: Path, infos: Mapping[str, TensorInfo]) -> None:
    needed, free = num_stored_bytes(dict(infos)), shutil.disk_usage(gettempdir()).free
    if needed > free:
        raise ConfigError(
            f"a copy of {model_dir.name} in another form takes {needed / GIB:.1f} GiB and {gettempdir()} has "
            f"{free / GIB:.1f}: set TMPDIR"
        )
