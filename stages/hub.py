"""What is wanted of a hub's repository, brought into a directory: from the hub, or from its cache on this machine."""

import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from stages.checkpoints.checks import ADAPTER
from stages.checkpoints.files import INDEX, SMALL, WHOLE, indexed_files, is_small_file
from stages.errors import DataError
from stages.local_files import copy_files, files_below

_SCRIPTS = ("*.py",)  # a data set's loading script is code; parquet, JSON and CSV need none


def transfer_model(repo_id: str, revision: str, out: Path, has_weights: bool) -> None:
    """The small files first: the index names the weights.  Raises DataError where a file is out of reach."""
    small = [f"*{suffix}" for suffix in SMALL]
    _transfer(repo_id, revision, "model", out, [*small, "tokenizer.model*"], _is_first)
    index = out / INDEX
    if has_weights:
        weights = indexed_files(index) if index.is_file() else [WHOLE]
        _transfer(repo_id, revision, "model", out, weights, weights.__contains__)
    else:
        index.unlink(missing_ok=True)


def transfer_dataset(repo_id: str, revision: str, out: Path) -> None:
    """All but code.  Raises DataError where it is out of reach."""
    _transfer(repo_id, revision, "dataset", out, None, _is_no_script)


def _is_first(place: str) -> bool:
    return is_small_file(place) or place in (INDEX, ADAPTER)


def _transfer(
    repo_id: str,
    revision: str,
    repo_type: str,
    out: Path,
    patterns: Sequence[str] | None,
    is_wanted: Callable[[str], bool],
) -> None:
    """Download into ``out``, or copy from the local hub cache where the hub may not be asked.

    ``is_wanted`` tells places in the repository; ``patterns`` match those at least, and their stars also folders.
    """
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline = constants.HF_HUB_OFFLINE
    owner = f"{repo_type} {repo_id}@{revision[:12]}"
    before = set(files_below(out))
    try:
        snapshot = snapshot_download(
            repo_id,
            revision=revision,
            repo_type=repo_type,
            allow_patterns=None if patterns is None else list(patterns),
            ignore_patterns=list(_SCRIPTS),
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
        copy_files(
            cached, [file for file in files_below(cached) if is_wanted(file.relative_to(cached).as_posix())], out
        )
    shutil.rmtree(out / ".cache", ignore_errors=True)  # the downloader's notes: times and paths
    for file in [file for file in files_below(out) if file not in before]:
        if not is_wanted(file.relative_to(out).as_posix()):
            file.unlink()


def _is_no_script(place: str) -> bool:
    return not any(fnmatch(place, pattern) for pattern in _SCRIPTS)
