"""Bring a model or a data set into the store, byte for byte digested, so that nothing later reaches for the network."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.checkpoints.checks import ADAPTER, check_model_path, check_quantized_path
from stages.checkpoints.files import CONFIG, companions, model_files
from stages.checkpoints.headers import read_tensor_infos
from stages.errors import ConfigError, DataError, StageError
from stages.fields import execution, identity
from stages.hub import transfer_dataset, transfer_model
from stages.local_files import copy_files, digest_tree, files_below
from stages.units import GIB

if TYPE_CHECKING:
    from stages.checkpoints.loaded import Loaded

VERSION = 1

_SHA = re.compile(r"[0-9a-f]{40}")


def check_revision(owner: str, revision: str | None) -> None:
    """Raise ValueError unless ``revision`` is a full commit sha (branches move, so they are no identity)."""
    if revision is not None and not _SHA.fullmatch(str(revision)):
        raise ValueError(f"{owner}: revision must be the full 40-hex commit sha, quoted in YAML; got {revision!r}")


@dataclass(kw_only=True, slots=True)
class ModelSource:
    """Where a model's bytes come from: exactly one of ``repo_id`` (hub), ``path`` (local) or ``package`` (PyPI)."""

    repo_id: str | None = identity(None)
    revision: str | None = identity(None)
    path: str | None = execution(None)
    digest: str | None = identity(None)  # of a local path's bytes; filled in when the plan is made
    package: str | None = identity(None)
    package_version: str | None = identity(None)
    file: str | None = identity(None)  # inside the package
    rescale_seed: int | None = identity(None, neutral=None)  # same function, weights off the file's grid; None: as is

    def __post_init__(self) -> None:
        given = [f"{place}={value}" for place in ("repo_id", "path", "package") if (value := getattr(self, place))]
        if len(given) != 1:
            both = f"{' and '.join(given)} are given; " if given else ""
            raise ValueError(
                f"model source: {both}give exactly one of repo_id, path, package: in a model's file, or with "
                "model.source.package=null where one is too many"
            )
        if self.repo_id is not None and self.revision is None:
            raise ValueError(f"model {self.repo_id}: a hub repository needs revision, the full 40-hex commit sha")
        if self.package is not None and (self.package_version is None or self.file is None):
            raise ValueError(f"model package {self.package}: give package_version and file as well")
        if self.file is not None and not self.file.endswith(".gguf"):
            raise ValueError(f"model package {self.package}: file must be a .gguf; got {self.file!r}")
        check_revision(f"model {self.repo_id}", self.revision)


@dataclass(kw_only=True, slots=True)
class DatasetSource:
    """A data set by hub id: from the hub at a revision, or from a mirror directory in the hub's layout."""

    repo_id: str = identity()
    revision: str | None = identity(None)
    mirror_path: str | None = execution(None)
    digest: str | None = identity(None)  # of the mirror's bytes; filled in when the plan is made

    def __post_init__(self) -> None:
        check_revision(f"data set {self.repo_id}", self.revision)


def copy_companions(model_dir: Path, out: Path) -> None:
    """Copy what a checkpoint needs beside weights and config.json."""
    copy_files(model_dir, companions(model_dir), out)


def fetch_model(config: ModelSource, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write a plain Hugging Face checkpoint directory; metrics ``size_gib`` and ``num_parameters`` of what is loaded,
    ``num_tensors`` of what is stored, ``num_unread`` of those that are not loaded.

    Raises DataError when the source is out of reach or not as promised, CheckpointError for damaged weights and for a
    model of which a loader would invent some.
    """
    bring(config, out)
    if config.rescale_seed is not None:
        from stages.checkpoints.rescale import rescale

        rescale(out, config.rescale_seed)
    with named(out, config):
        loaded = _check_loads(out)
    return {
        "size_gib": loaded.num_bytes / GIB,
        "num_tensors": len(read_tensor_infos(out)),
        "num_parameters": loaded.num_elements,
        "num_unread": len(loaded.unread),
    }


def fetch_tokenizer(config: ModelSource, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write a model's directory without its weights: what a prompt is made with; metrics ``num_files``.

    Raises DataError when the source is out of reach or not as promised.
    """
    bring(config, out, has_weights=False)
    for weights in out.glob("*.safetensors"):  # a package has them in one file with the rest
        weights.unlink()
    with named(out, config):
        check_model_path(out, has_weights=False)
    (out / ADAPTER).unlink(missing_ok=True)
    return {"num_files": sum(1 for _ in files_below(out))}


def fetch_dataset(config: DatasetSource, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write the data set in the hub's layout; metrics ``num_files``, ``size_gib``.

    Raises DataError when the source is out of reach, or its bytes are no longer the digested ones.
    """
    if config.mirror_path is not None:
        mirror = Path(config.mirror_path)
        if not any(files_below(mirror)):
            raise DataError(
                f"the mirror lacks the data set {config.repo_id}: put it at {config.mirror_path} in the hub's layout, "
                "or drop the tasks or the calibration that read it"
            )
        copy_files(mirror, files_below(mirror), out)
        _check_digest(out, config.digest, f"data set {config.repo_id}")
    elif config.revision is not None:
        transfer_dataset(config.repo_id, config.revision, out)
    else:
        raise ConfigError(
            f"data set {config.repo_id}: give its revision, or data.mirror=DIR with {config.repo_id} in it"
        )
    sizes = [file.stat().st_size for file in files_below(out)]
    if not sizes:
        raise DataError(f"data set {config.repo_id}: {config.mirror_path or 'the repository'} holds no files")
    return {"num_files": len(sizes), "size_gib": sum(sizes) / GIB}


def _check_loads(out: Path) -> "Loaded":
    """Nothing of the model is invented; what is not loaded is said in the step's log."""
    from stages.checkpoints.loaded import check_loads, shown

    model = check_model_path(out)
    (out / ADAPTER).unlink(missing_ok=True)  # of a model that has one beside its own weights
    loaded = check_loads(out, model)
    if unread := loaded.unread:
        print(f"{shown(unread)} not loaded and will not be in a checkpoint ({len(unread)} tensors)")
    return loaded


@contextmanager
def named(out: Path, config: ModelSource) -> Iterator[None]:
    """Within it, an error names the source in place of the directory that it was brought into."""
    owner = _owner(config)
    try:
        yield
    except StageError as error:
        told = str(error).replace(f"model path {out}", owner).replace(f"{out}/", f"{owner}: ").replace(str(out), owner)
        raise type(error)(told) from error


def _owner(config: ModelSource) -> str:
    if config.path is not None:
        return f"model path {config.path}"
    return f"model {config.repo_id}@{str(config.revision)[:12]}" if config.repo_id else f"model {config.package}"


def bring(config: ModelSource, out: Path, has_weights: bool = True, is_quantized: bool = False) -> None:
    """Write a source's files as they are; DataError or CheckpointError where they are not what was promised."""
    if config.package is not None:
        _fetch_package(config, out)
    elif config.path is not None:
        path = Path(config.path)
        if is_quantized:
            check_quantized_path(path)
        else:
            check_model_path(path, has_weights)
        copy_files(path, model_files(path) if has_weights else [path / CONFIG, *companions(path)], out)
        _check_digest(path, config.digest, f"model {path}")
    else:
        transfer_model(str(config.repo_id), str(config.revision), out, has_weights)


def _fetch_package(config: ModelSource, out: Path) -> None:
    from importlib.metadata import PackageNotFoundError, distribution

    from stages.checkpoints.gguf import convert_gguf

    wanted = f"{config.package}=={config.package_version}"
    try:
        package = distribution(str(config.package))
    except PackageNotFoundError as error:
        raise DataError(f"package {config.package} is not installed; install {wanted}") from error
    if package.version != config.package_version:
        raise DataError(f"package {config.package} is version {package.version}; install {wanted}")
    file = Path(str(package.locate_file(str(config.file))))
    if not file.is_file():
        raise DataError(f"package {wanted} holds no file {config.file}")
    convert_gguf(file, out)


def _check_digest(path: Path, digest: str | None, owner: str) -> None:
    if digest is not None and digest_tree(path) != digest:
        raise DataError(f"{owner}: the files changed after the plan was made; start again")
