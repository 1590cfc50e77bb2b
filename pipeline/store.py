"""The store: published artifacts, each a directory named by its fingerprint, complete or not there at all.

``<root>/<stage>/<label>-<fp12>/manifest.json``.  A step writes into a draft beside its final place; publishing writes
the manifest last and renames the draft once.  Nothing published is ever changed, so readers need no locks, and two
publishers of one step are harmless: the first rename wins and the second draft is dropped.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.errors import UserError
from pipeline.step import Metrics, Step, StepRef

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
_DRAFT = re.compile(r"\.draft-[0-9a-f]{12}-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}")
# A draft of another host whose process cannot be looked up is taken for dead after this long without a write.
ABANDONED_AFTER_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Draft:
    """A step's output while it is being made."""

    step: Step
    path: Path
    store: "Store"

    def publish(self, metrics: Metrics, provenance: Mapping[str, Any]) -> Path:
        """Write the manifest, make everything durable, and rename into place; returns the artifact's directory."""
        manifest = {
            "manifest_version": MANIFEST_VERSION,
            "stage": self.step.stage.name,
            "label": self.step.label,
            "fingerprint": self.step.fingerprint,
            "payload": self.step.payload,
            "inputs": {name: list(ref) for name, ref in sorted(self.step.inputs.items())},
            "metrics": dict(metrics),
            "files": describe_files(self.path),
            "provenance": dict(provenance),
        }
        write_durably(self.path / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
        return self.store._move_into_place(self)


class Store:
    """Artifacts under ``root`` on a file system that all workers share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, tuple[int, dict[str, Path]]] = {}
        self._verified: dict[StepRef, Path] = {}

    def find(self, ref: StepRef) -> Path | None:
        """The published artifact's directory, or None.  The full fingerprint in the manifest decides."""
        known = self._verified.get(ref)
        if known is not None and (known / MANIFEST).exists():
            return known
        path = self._listing(ref.stage).get(ref.fingerprint[:12])
        if path is None or read_manifest(path).get("fingerprint") != ref.fingerprint:
            return None
        self._verified[ref] = path
        return path

    def path(self, ref: StepRef) -> Path:
        """Like ``find`` for an artifact that must be there; raises FileNotFoundError."""
        found = self.find(ref)
        if found is None:
            raise FileNotFoundError(f"{ref.short} is not in the store {self.root}")
        return found

    def manifest(self, ref: StepRef) -> dict[str, Any] | None:
        """The manifest of a published artifact, or None when there is none."""
        path = self.find(ref)
        return None if path is None else read_manifest(path)

    def manifests(self, stage: str) -> Iterator[dict[str, Any]]:
        """The manifests of everything a stage has published, in directory order."""
        for path in sorted(self._listing(stage).values()):
            if manifest := read_manifest(path):
                yield manifest

    def missing(self, steps: Iterable[Step]) -> list[Step]:
        """The steps that are not published: the one list a run works through."""
        return [step for step in steps if self.find(step.ref) is None]

    @contextlib.contextmanager
    def draft(self, step: Step) -> Iterator[Draft]:
        """An empty directory beside the artifact's final place, gone afterwards whatever happens."""
        name = f".draft-{step.fingerprint[:12]}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        path = self.root / step.stage.name / name
        path.mkdir(parents=True)
        try:
            yield Draft(step, path, self)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def check_writable(self, needed_bytes: int = 0) -> None:
        """Raise UserError when the store cannot take a new artifact of ``needed_bytes``."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex}"
            write_durably(probe, "x" * 4096)
            probe.unlink()
            free_bytes = shutil.disk_usage(self.root).free
        except OSError as error:
            raise UserError(
                f"the store {self.root} cannot be written ({error.strerror}): free or mount it, "
                "or choose another with store.root=DIR"
            ) from None
        if free_bytes < needed_bytes:
            raise UserError(
                f"the store {self.root} has {free_bytes / 2**30:.1f} GiB free and this plan writes about "
                f"{needed_bytes / 2**30:.1f} GiB: free space, or choose another with store.root=DIR"
            )

    def remove_abandoned_drafts(self) -> int:
        """Delete drafts whose process is gone; returns how many."""
        drafts = [path for path in self.root.glob("*/.draft-*") if _abandoned(path)]
        for path in drafts:
            shutil.rmtree(path, ignore_errors=True)
        return len(drafts)

    def _listing(self, stage: str) -> dict[str, Path]:
        directory = self.root / stage
        try:
            changed_ns = directory.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return {}
        listed = self._listed.get(stage)
        # A listing made within the clock's grain of the last change may have missed an entry: it is made again.
        if listed is None or listed[0] != changed_ns or time.time_ns() - changed_ns < 1_000_000_000:
            names = (entry.name for entry in os.scandir(directory) if not entry.name.startswith("."))
            listed = changed_ns, {name.rpartition("-")[2]: directory / name for name in names}
            self._listed[stage] = listed
        return listed[1]

    def _move_into_place(self, draft: Draft) -> Path:
        target = draft.path.parent / f"{file_name(draft.step.label)}-{draft.step.fingerprint[:12]}"
        already = self.find(draft.step.ref)
        if already is not None:
            return already
        try:
            draft.path.rename(target)
        except OSError:
            # Another publisher was first, or something incomplete lies there (a manifest deleted by hand).
            if read_manifest(target).get("fingerprint") == draft.step.fingerprint:
                return target
            target.rename(target.with_name(f".damaged-{target.name}-{uuid.uuid4().hex[:8]}"))
            draft.path.rename(target)
        _sync_directory(target.parent)
        return target


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in an artifact's directory; empty when it is missing or unreadable."""
    try:
        return cast(dict[str, Any], json.loads((path / MANIFEST).read_bytes()))
    except (OSError, ValueError):
        return {}


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """``{relative path: {"size", "sha256"}}`` of every file below ``directory``, each flushed to the disk."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        files[path.relative_to(directory).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    return files


def write_durably(path: Path, text: str) -> None:
    """Write a text file and flush it to the disk."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def file_name(label: str) -> str:
    """``label`` as a readable, portable file name."""
    return re.sub(r"[^A-Za-z0-9_.=]+", "-", label).strip("-.") or "artifact"


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _abandoned(draft: Path) -> bool:
    owner = _DRAFT.fullmatch(draft.name)
    if owner is None:
        return False
    if owner["host"] == socket.gethostname():
        return not Path(f"/proc/{owner['pid']}").exists()
    with contextlib.suppress(FileNotFoundError):
        return time.time() - draft.stat().st_mtime > ABANDONED_AFTER_S
    return False
