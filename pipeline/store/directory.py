"""A store in a directory: ``<root>/<stage>/<name>/manifest.json``; publishing is one rename."""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.steps.stages import STAGES
from pipeline.store.manifest import MANIFEST, damage, num_bytes, proves, read_manifest, write_durably, write_manifest
from pipeline.store.ownership import holds_only_its_own, remove_listed
from pipeline.store.storage import Stored, unique
from stages.units import GIB

SET_ASIDE = ".damaged-"
_ASIDE = re.compile(rf"{re.escape(SET_ASIDE)}(.+)-[0-9a-f]{{8}}")


@dataclass(frozen=True, slots=True)
class Listing:
    """What a stage's directory held: when it had changed, when it was read, and the artifacts by 12 digits."""

    changed_ns: int
    made_s: float
    names: dict[str, str]


class DirectoryStorage:
    """Artifacts and records under ``root`` on a file system that all workers share.

    Two publishers of one artifact are harmless: the first rename wins and the second draft is dropped.
    """

    def __init__(self, root: Path, patience_s: float) -> None:
        self.local = root
        self._patience_s = patience_s
        self._listed: dict[str, Listing] = {}

    @property
    def url(self) -> str:
        return str(self.local)

    def refresh(self) -> None:
        self._listed.clear()

    def listing(self, stage: str) -> dict[str, str]:
        directory, known = self.local / stage, self._listed.get(stage)
        if known is not None and time.monotonic() - known.made_s < self._patience_s:
            return known.names
        try:
            changed_ns = directory.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return {}
        # A listing made within the clock's grain of the last change may have missed an entry: it is made again.
        if known is None or known.changed_ns != changed_ns or time.time_ns() - changed_ns < 1_000_000_000:
            names = (name for name in _names(directory) if not name.startswith("."))
            known = Listing(changed_ns, time.monotonic(), {name.rpartition("-")[2]: name for name in names})
            self._listed[stage] = known
        return known.names

    def stamp(self, stage: str, name: str) -> str | None:
        try:
            return str((self.local / stage / name / MANIFEST).stat().st_mtime_ns)
        except OSError:
            return None

    def manifest(self, stage: str, name: str) -> dict[str, Any]:
        return read_manifest(self.local / stage / name)

    def fetch(self, stage: str, name: str) -> Path:
        return self.local / stage / name

    def publish(self, draft: Path, stage: str, name: str, manifest: Mapping[str, Any]) -> None:
        write_manifest(draft, manifest)
        target = self.local / stage / name
        try:
            draft.rename(target)
        except OSError:
            # Another publisher was first, or something incomplete lies there (a manifest deleted by hand).
            if read_manifest(target).get("fingerprint") == manifest["fingerprint"]:
                return
            self.set_aside(stage, name)
            draft.rename(target)
        _sync(target.parent)
        self.listing(stage)[name.rpartition("-")[2]] = name

    def damage(self, stage: str, name: str) -> str | None:
        path = self.local / stage / name
        return damage(path, read_manifest(path).get("files", {}))

    audit = damage

    def set_aside(self, stage: str, name: str) -> None:
        self._aside(self.local / stage / name, name)
        self._listed.pop(stage, None)

    def everything(self) -> Iterator[Stored]:
        for stage, path in self._below_stages():
            if (stored := self._stored(stage, path)) is not None:
                yield stored

    def unproven(self) -> Sequence[str]:
        aside = [each for each in self._below_stages() if _ASIDE.fullmatch(each[1].name)]
        return [str(path) for stage, path in aside if self._stored(stage, path) is None]

    def hide(self, stored: Stored) -> Stored | None:
        if stored.name is None:
            return stored
        path = self._aside(Path(stored.location), stored.name)
        self._listed.pop(stored.stage, None)
        return None if path is None else stored._replace(name=None, location=str(path))

    def restore(self, hidden: Stored) -> None:
        path = Path(hidden.location)
        with contextlib.suppress(OSError):  # made again meanwhile
            path.rename(path.with_name(_name_of(path)))
        self._listed.pop(hidden.stage, None)

    def remove(self, hidden: Stored) -> None:
        path = Path(hidden.location)
        # Under a name that nobody else knows, so that nobody brings it back half removed.
        if (claimed := self._aside(path, _name_of(path))) is not None:
            remove_listed(claimed)

    def _below_stages(self) -> Iterator[tuple[str, Path]]:
        for stage in sorted(STAGES):
            directory = self.local / stage
            if not directory.is_symlink():  # what a link leads to may be another store's
                yield from ((stage, directory / name) for name in sorted(_names(directory)))

    def _stored(self, stage: str, path: Path) -> Stored | None:
        """What of this store's a directory is; None for what it cannot prove to have published."""
        name, manifest = _name_of(path), {} if path.is_symlink() else read_manifest(path)
        if not proves(manifest, stage, name) or not holds_only_its_own(path, manifest):
            return None
        return Stored(stage, name if path.name == name else None, str(path), num_bytes(manifest))

    def _aside(self, path: Path, name: str) -> Path | None:
        """Where a directory was moved to; None when it is gone."""
        target = path.with_name(f"{SET_ASIDE}{name}-{uuid.uuid4().hex[:8]}")
        try:
            return path.rename(target)
        except FileNotFoundError:  # another process was first
            return None

    def check_writable(self, needed_bytes: int) -> None:
        check_directory(self.local, "store.root=DIR", needed_bytes)

    def append(self, record: str, line: str) -> None:
        path = self._record(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The leading newline keeps this line readable after one that a kill tore.
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")

    def lines(self, record: str) -> Sequence[str]:
        try:
            text = self._record(record).read_text(encoding="utf-8", errors="replace")  # a kill may tear a letter
        except FileNotFoundError:
            return []
        return [line for line in text.split("\n") if line]

    def create(self, record: str, text: str) -> None:
        path = self._record(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as stream:
            stream.write(text)

    def write(self, record: str, text: str) -> None:
        path = self._record(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}-{unique()}")
        write_durably(partial, text)
        partial.replace(path)

    def read(self, record: str) -> str | None:
        try:
            return self._record(record).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def delete(self, record: str) -> None:
        self._record(record).unlink(missing_ok=True)

    def records(self, folder: str) -> Sequence[str]:
        directory = self.local / folder
        # What is there and cannot be listed is an error: nobody may take it for empty.
        entries = os.scandir(directory) if os.path.lexists(directory) else ()
        return sorted(entry.name for entry in entries if not entry.name.startswith("."))

    def log_place(self, log: Path) -> str:
        return str(log)

    def keep_log(self, log: Path) -> None:
        pass  # every machine reads it where it is written

    def find_log(self, log: Path) -> Path | None:
        return log if log.exists() else None

    def _record(self, record: str) -> Path:
        return self.local / record


def check_directory(directory: Path, option: str, needed_bytes: int = 0) -> None:
    """Raise UserError, naming the option to change, when ``needed_bytes`` cannot be written below a directory."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{uuid.uuid4().hex}"
        write_durably(probe, "x" * 4096)
        probe.unlink()
        free_bytes = shutil.disk_usage(directory).free
    except OSError as error:
        raise UserError(
            f"the store {directory} cannot be written ({error.strerror}): free or mount it, "
            f"or choose another with {option}"
        ) from None
    if free_bytes < needed_bytes:
        raise UserError(
            f"the store {directory} has {free_bytes / GIB:.1f} GiB free and this plan writes about "
            f"{needed_bytes / GIB:.1f} GiB: free space, or choose another with {option}"
        )


def _names(directory: Path) -> list[str]:
    """What a directory holds; nothing where there is none."""
    try:
        return [entry.name for entry in os.scandir(directory)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _name_of(path: Path) -> str:
    """What an artifact's directory is called, or was until it was moved aside."""
    aside = _ASIDE.fullmatch(path.name)
    return aside[1] if aside else path.name


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
