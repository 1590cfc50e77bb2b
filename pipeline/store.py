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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.errors import UserError
from pipeline.fingerprint import fingerprint
from pipeline.step import Metrics, Step, StepRef

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
SET_ASIDE = ".damaged-"
_DRAFT = re.compile(r"\.draft-[0-9a-f]{12}-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}")
# A draft of another host whose process cannot be looked up is taken for dead after this long without a write.
ABANDONED_AFTER_S = 7 * 24 * 3600
NUM_READERS, STEPS_A_READER = 16, 256


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


@dataclass(frozen=True, slots=True)
class Listing:
    """What a stage's directory held: when it had changed, when it was read, and the artifacts by 12 digits."""

    changed_ns: int
    made_s: float
    names: dict[str, str]


class Store:
    """Artifacts under ``root`` on a file system that all workers share.

    A stage's directory is listed again when it has changed, but not before ``patience_s``: a worker that publishes
    shard after shard beside thousands of others would read nothing but listings.  What it may miss so long is work
    that another driver did, which it then does again.
    """

    def __init__(self, root: Path, patience_s: float = 0) -> None:
        self.root = root
        self._patience_s = patience_s
        self._listed: dict[str, Listing] = {}
        self._index = Index(root)

    def find(self, ref: StepRef) -> Path | None:
        """The published artifact's directory, or None.  The full fingerprint in the manifest decides."""
        name = self._listing(ref.stage).get(ref.fingerprint[:12])
        if name is None:
            return None
        path = self.root / ref.stage / name
        known = self._index.of(path)
        return path if known is not None and known.fingerprint == ref.fingerprint else None

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
        for name in sorted(self._listing(stage).values()):
            if manifest := read_manifest(self.root / stage / name):
                yield manifest

    def environments(self, refs: Iterable[StepRef]) -> list[dict[str, Any]]:
        """The different environments that published artifacts were made in, with one manifest read for each."""
        found: dict[str, Path] = {}
        for path in (path for ref in refs if (path := self.find(ref)) is not None):
            if (known := self._index.of(path)) is not None:
                found.setdefault(known.environment, path)
        return [environment_of(read_manifest(path)) for path in found.values()]

    def missing(self, steps: Iterable[Step]) -> list[Step]:
        """The steps that are not published: the one list a run works through.

        Looks at many artifacts at once, because a shared file system answers late rather than slowly, and remembers
        their fingerprints, so that the next start reads no manifest.
        """
        steps = list(steps)
        for stage in {step.stage.name for step in steps}:
            self._listing(stage)
        portions = [steps[first : first + STEPS_A_READER] for first in range(0, len(steps), STEPS_A_READER)]
        with ThreadPoolExecutor(NUM_READERS) as readers:
            found = list(readers.map(self._not_found, portions))
        self._index.save()
        return [step for portion in found for step in portion]

    def _not_found(self, steps: Iterable[Step]) -> list[Step]:
        return [step for step in steps if self.find(step.ref) is None]

    def damaged(self, steps: Iterable[Step]) -> dict[StepRef, str]:
        """Digest every published artifact of the steps again; those that are not what their manifest says, and why."""
        present = [step.ref for step in steps if self.find(step.ref) is not None]
        return {ref: what for ref in present if (what := self.damage(ref)) is not None}

    def damage(self, ref: StepRef) -> str | None:
        """Digest a published artifact again; what in it is not as its manifest says, or None."""
        return _damage(self.path(ref))

    def set_aside(self, ref: StepRef) -> None:
        """Take a damaged artifact out of the store's sight; ``mode=gc`` removes it."""
        _set_aside(self.path(ref))
        self._listed.pop(ref.stage, None)

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

    def _listing(self, stage: str) -> dict[str, str]:
        """Names of directories by the 12 digits they end with."""
        directory, known = self.root / stage, self._listed.get(stage)
        if known is not None and time.monotonic() - known.made_s < self._patience_s:
            return known.names
        try:
            changed_ns = directory.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return {}
        # A listing made within the clock's grain of the last change may have missed an entry: it is made again.
        if known is None or known.changed_ns != changed_ns or time.time_ns() - changed_ns < 1_000_000_000:
            names = (entry.name for entry in os.scandir(directory) if not entry.name.startswith("."))
            known = Listing(changed_ns, time.monotonic(), {name.rpartition("-")[2]: name for name in names})
            self._listed[stage] = known
        return known.names

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
            _set_aside(target)
            draft.path.rename(target)
        _sync_directory(target.parent)
        self._listing(draft.step.stage.name)[draft.step.fingerprint[:12]] = target.name
        return target


class Known(NamedTuple):
    """What a manifest states; ``environment`` is a digest that is equal for equal environments."""

    written_ns: int
    fingerprint: str
    environment: str


class Index:
    """What the manifest in each directory states, kept in ``<root>/cache/index.json`` between starts.

    Only a memory: a manifest that was written at another time than the one remembered is read.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / "cache" / "index.json"
        self._known: dict[str, Known] | None = None
        self._is_new = False

    def of(self, path: Path) -> Known | None:
        """What the manifest in an artifact's directory states; None where there is none that can be read."""
        try:
            written_ns = (path / MANIFEST).stat().st_mtime_ns
        except OSError:
            return None
        name = f"{path.parent.name}/{path.name}"
        known = self._loaded().get(name)
        if known is None or known.written_ns != written_ns:
            if not (manifest := read_manifest(path)):
                return None
            known = Known(written_ns, manifest["fingerprint"], fingerprint(environment_of(manifest))[:16])
            self._loaded()[name] = known
            self._is_new = True
        return known

    def save(self) -> None:
        """Write it down if something was added; a store that cannot be written to stays readable."""
        if not self._is_new:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(f".{os.getpid()}.tmp")
            partial.write_text(json.dumps(self._loaded()), encoding="utf-8")
            partial.replace(self._path)
            self._is_new = False

    def _loaded(self) -> dict[str, Known]:
        if self._known is None:
            try:
                self._known = {name: Known(*known) for name, known in json.loads(self._path.read_bytes()).items()}
            except (OSError, ValueError, TypeError, AttributeError):
                self._known = {}
        return self._known


def environment_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What of an artifact's circumstances could move a number: packages and commit."""
    provenance = manifest.get("provenance", {})
    return {"packages": provenance.get("packages"), "git": (provenance.get("git") or {}).get("commit")}


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


def _damage(path: Path) -> str | None:
    """What in an artifact is not as its manifest says: a file missing, added or changed."""
    described = read_manifest(path).get("files", {})
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {MANIFEST}
    if lost := sorted(described.keys() - present):
        return f"{lost[0]} is missing"
    if strange := sorted(present - described.keys()):
        return f"{strange[0]} does not belong to it"
    names = sorted(described)
    with ThreadPoolExecutor(os.cpu_count()) as readers:
        digests = list(readers.map(lambda name: _digest(path / name), names))
    changed = (name for name, digest in zip(names, digests, strict=True) if digest != described[name]["sha256"])
    return next((f"{name} was changed" for name in changed), None)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_set_aside(path: Path) -> bool:
    """Whether a directory is an artifact that was found damaged."""
    return path.name.startswith(SET_ASIDE)


def _set_aside(path: Path) -> None:
    path.rename(path.with_name(f"{SET_ASIDE}{path.name}-{uuid.uuid4().hex[:8]}"))


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
