"""Bring a model or a data set into the store, byte for byte digested, so that nothing later reaches for the network."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.errors import DataError
from stages.fields import execution, identity

VERSION = 1

_SHA = re.compile(r"[0-9a-f]{40}")


def check_revision(owner: str, revision: str | None) -> None:
    """Raise ValueError unless ``revision`` is a full commit sha (branches move, so they are no identity)."""
    if revision is not None and not _SHA.fullmatch(str(revision)):
        raise ValueError(
            f"{owner}: revision must be the full 40-hex commit sha, quoted in YAML; got {revision!r}"
        )


@dataclass(kw_only=True, slots=True)
class ModelSource:
    """Where a model's bytes come from: exactly one of ``repo_id`` (hub), ``path`` (local) or ``package`` (PyPI)."""

    repo_id: str | None = identity(None)
    revision: str | None = identity(None)
    path: str | None = execution(None)
    digest: str | None = identity(
        None
    )  # of a local path's bytes; filled in when the plan is made
    package: str | None = identity(None)
    package_version: str | None = identity(None)
    file: str | None = identity(None)  # inside the package

    def __post_init__(self) -> None:
        if (
            sum(place is not None for place in (self.repo_id, self.path, self.package))
            != 1
        ):
            raise ValueError("model source: give exactly one of repo_id, path, package")
        if self.repo_id is not None and self.revision is None:
            raise ValueError(
                f"model {self.repo_id}: a hub repository needs revision, the full 40-hex commit sha"
            )
        if self.package is not None and (
            self.package_version is None or self.file is None
        ):
            raise ValueError(
                f"model package {self.package}: give package_version and file as well"
            )
        check_revision(f"model {self.repo_id}", self.revision)


@dataclass(kw_only=True, slots=True)
class DatasetSource:
    """A data set by hub id: from the hub at a revision, or from a mirror directory in the hub's layout."""

    repo_id: str = identity()
    revision: str | None = identity(None)
    mirror_path: str | None = execution(None)
    digest: str | None = identity(
        None
    )  # of the mirror's bytes; filled in when the plan is made

    def __post_init__(self) -> None:
        check_revision(f"data set {self.repo_id}", self.revision)


def digest_tree(path: Path) -> str:
    """Sha256 over the sorted (relative path, size, sha256) of every file under ``path``; DataError if there is none."""
    files = sorted(
        (file.relative_to(path).as_posix(), file)
        for file in path.rglob("*")
        if file.is_file()
    )
    if not files:
        raise DataError(f"{path} holds no files")
    rows = [[name, file.stat().st_size, _digest_file(file)] for name, file in files]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def check_model_path(path: Path) -> None:
    """Raise DataError unless ``path`` is a checkpoint directory: config.json and safetensors, no remote code."""
    if not path.is_dir():
        raise DataError(f"model path {path} is not a directory")
    if not any(path.glob("*.safetensors")):
        raise DataError(
            f"model path {path} holds no *.safetensors; convert the weights with save_pretrained first"
        )
    if not (path / "config.json").is_file():
        raise DataError(f"model path {path} holds no config.json")
    if "auto_map" in json.loads((path / "config.json").read_text()):
        raise DataError(
            f"model path {path}: config.json asks for remote code (auto_map), which is never run"
        )


def fetch_model(
    config: ModelSource, inputs: Mapping[str, Path], out: Path
) -> Mapping[str, float | None]:
    """Write a plain Hugging Face checkpoint directory; metrics ``size_gib``, ``num_tensors``, ``num_parameters``."""
    raise NotImplementedError


def fetch_dataset(
    config: DatasetSource, inputs: Mapping[str, Path], out: Path
) -> Mapping[str, float | None]:
    """Write the data set in the hub's layout; metrics ``num_files``, ``size_gib``."""
    raise NotImplementedError


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
