"""What in a directory was published there and may be removed; everything else is somebody's and stays."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.store.manifest import MANIFEST, read_manifest


def holds_only_its_own(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a directory has nothing in it that its manifest does not list."""
    return set(_entries(path)) <= {MANIFEST, *manifest["files"]}


def remove_listed(path: Path) -> None:
    """Remove the files that the manifest in a directory lists, the manifest last, and the directories left empty.

    Nothing is reached through a symbolic link, whatever the manifest says.
    """
    listed: Mapping[str, Any] = read_manifest(path).get("files", {})
    for entry in [entry for entry in _entries(path) if entry in listed]:
        _unlink(path, entry)
    _unlink(path, MANIFEST)


def _unlink(directory: Path, entry: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        (directory / entry).unlink()
    for folder in (directory / entry).parents:
        if not folder.is_relative_to(directory):
            return
        try:
            folder.rmdir()
        except OSError:  # not empty
            return


def _entries(directory: Path) -> Iterator[str]:
    """Everything below that is no directory, a link to one included."""
    for parent, folders, files in os.walk(directory):
        links = [folder for folder in folders if Path(parent, folder).is_symlink()]
        yield from (Path(parent, name).relative_to(directory).as_posix() for name in (*files, *links))
