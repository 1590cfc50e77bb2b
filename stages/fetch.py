"""Bring a model or a data set into the store, byte for byte digested, so that nothing later reaches for the network."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from stages.checkpoints.headers import num_elements, num_stored_bytes, read_tensor_infos
from stages.checkpoints.shape import read_description
from stages.errors import ConfigError, DataError
from stages.fields import execution, identity
from stages.units import GIB

VERSION = 1

_SHA = re.compile(r"[0-9a-f]{40}")
# Weights that cannot run code, the config, and every tokenizer file transformers or vLLM reads.
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
)
_TOKENIZER_FILES = tuple(pattern for pattern in _MODEL_FILES if "safetensors" not in pattern)
_SCRIPTS = ("*.py",)  # a data set's loading script is code; parquet, JSON and CSV need none


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


def digest_tree(path: Path) -> str:
    """Sha256 over the sorted (relative path, size, sha256) of every file under ``path``; DataError if there is none."""
    files = sorted(_files(path), key=lambda file: -file.stat().st_size)  # the largest decides how long it takes
    if not files:
        raise DataError(f"{path} is not a directory with files in it")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        digests = threads.map(_digest_file, files)
        rows = [
            [file.relative_to(path).as_posix(), file.stat().st_size, digest]
            for file, digest in zip(files, digests, strict=True)
        ]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def check_model_path(path: Path, has_weights: bool = True) -> None:
    """Raise DataError unless ``path`` is a checkpoint directory: config.json and safetensors, no remote code.

    Every other description that lies there must be readable as well.
    """
    if not path.is_dir():
        raise DataError(f"model path {path} is not a directory")
    if has_weights and not any(path.glob("*.safetensors")):
        raise DataError(f"model path {path} holds no *.safetensors; convert the weights with save_pretrained first")
    if not (path / "config.json").is_file():
        raise DataError(f"model path {path} holds no config.json")
    for file in sorted(file for file in path.glob("*.json") if _is_model_file(file.name)):
        if "auto_map" in read_description(file) and file.name.endswith("config.json"):  # elsewhere it may be a token
            raise DataError(f"model path {path}: {file.name} asks for remote code (auto_map), which is never run")


def copy_companions(model_dir: Path, out: Path) -> None:
    """Copy what a checkpoint needs beside weights and config.json."""
    _copy_files(model_dir, companions(model_dir), out)


def companions(model_dir: Path) -> list[Path]:
    """What a model is read from beside weights and config.json: tokenizer, chat template, generation config."""
    files = [file for file in sorted(model_dir.iterdir()) if _is_model_file(file.name)]
    return [file for file in files if "safetensors" not in file.name and file.name != "config.json"]


def fetch_model(config: ModelSource, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write a plain Hugging Face checkpoint directory; metrics ``size_gib``, ``num_tensors``, ``num_parameters``.

    Raises DataError when the source is out of reach or not as promised, CheckpointError for damaged weights.
    """
    _fetch(config, out)
    check_model_path(out)
    if config.rescale_seed is not None:
        from stages.checkpoints.rescale import rescale

        rescale(out, config.rescale_seed)
    infos = read_tensor_infos(out)
    return {
        "size_gib": num_stored_bytes(infos) / GIB,
        "num_tensors": len(infos),
        "num_parameters": sum(map(num_elements, infos.values())),
    }


def fetch_tokenizer(config: ModelSource, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write a model's directory without its weights: what a prompt is made with; metrics ``num_files``.

    Raises DataError when the source is out of reach or not as promised.
    """
    _fetch(config, out, has_weights=False)
    for weights in out.glob("*.safetensors"):  # a package has them in one file with the rest
        weights.unlink()
    check_model_path(out, has_weights=False)
    return {"num_files": sum(1 for _ in _files(out))}


def fetch_dataset(config: DatasetSource, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write the data set in the hub's layout; metrics ``num_files``, ``size_gib``.

    Raises DataError when the source is out of reach, or its bytes are no longer the digested ones.
    """
    if config.mirror_path is not None:
        if not any(_files(Path(config.mirror_path))):
            raise DataError(
                f"the mirror lacks the data set {config.repo_id}: put it at {config.mirror_path} in the hub's layout, "
                "or drop the tasks or the calibration that read it"
            )
        _copy_files(Path(config.mirror_path), list(_files(Path(config.mirror_path))), out)
        _check_digest(out, config.digest, f"data set {config.repo_id}")
    elif config.revision is not None:
        _fetch_hub(config.repo_id, config.revision, "dataset", out)
    else:
        raise ConfigError(
            f"data set {config.repo_id}: give its revision, or data.mirror=DIR with {config.repo_id} in it"
        )
    sizes = [file.stat().st_size for file in _files(out)]
    if not sizes:
        raise DataError(f"data set {config.repo_id}: {config.mirror_path or 'the repository'} holds no files")
    return {"num_files": len(sizes), "size_gib": sum(sizes) / GIB}


def _fetch(config: ModelSource, out: Path, has_weights: bool = True) -> None:
    patterns = _MODEL_FILES if has_weights else _TOKENIZER_FILES
    if config.package is not None:
        _fetch_package(config, out)
    elif config.path is not None:
        check_model_path(Path(config.path), has_weights)
        _copy_local_model(Path(config.path), config.digest, out, patterns)
    else:
        _fetch_hub(str(config.repo_id), str(config.revision), "model", out, patterns)


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


def _copy_local_model(path: Path, digest: str | None, out: Path, patterns: Sequence[str]) -> None:
    _copy_files(path, [file for file in path.iterdir() if _is_one_of(file.name, patterns)], out)
    _check_digest(path, digest, f"model {path}")


def _fetch_hub(repo_id: str, revision: str, repo_type: str, out: Path, patterns: Sequence[str] = _MODEL_FILES) -> None:
    """Download into ``out``, or copy from the local hub cache where the hub may not be asked."""
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline = constants.HF_HUB_OFFLINE
    owner = f"{repo_type} {repo_id}@{revision[:12]}"
    try:
        snapshot = snapshot_download(
            repo_id,
            revision=revision,
            repo_type=repo_type,
            allow_patterns=list(patterns) if repo_type == "model" else None,
            ignore_patterns=None if repo_type == "model" else list(_SCRIPTS),
            local_files_only=offline,
            local_dir=None if offline else out,
        )
    except LocalEntryNotFoundError as error:
        advice = "HF_HUB_OFFLINE is set; unset it, or use a local path" if offline else "the hub is out of reach"
        raise DataError(f"{owner} is not in the local hub cache and {advice}") from error
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{owner} cannot be fetched: {reason}") from error
    if offline:
        cached = Path(snapshot)
        _copy_files(cached, [file for file in _files(cached) if _is_wanted(file.name, repo_type, patterns)], out)
    shutil.rmtree(out / ".cache", ignore_errors=True)  # the downloader's notes: times and paths


def _is_model_file(name: str) -> bool:
    return _is_one_of(name, _MODEL_FILES)


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _is_wanted(name: str, repo_type: str, patterns: Sequence[str]) -> bool:
    return _is_one_of(name, patterns) if repo_type == "model" else not _is_one_of(name, _SCRIPTS)


def _check_digest(path: Path, digest: str | None, owner: str) -> None:
    if digest is not None and digest_tree(path) != digest:
        raise DataError(f"{owner}: the files changed after the plan was made; start again")


def _copy_files(source: Path, files: list[Path], out: Path) -> None:
    for file in files:
        target = out / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _files(path: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(path, followlinks=True):
        yield from (Path(folder, name) for name in names)


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
