"""Manifests: what a published artifact says of itself, and whether its bytes still are what it says."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from pipeline.steps.stages import Metrics
from pipeline.steps.step import Step

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
MAX_FILE_NAME = 150  # of the 255 that file systems have, the rest is for digits, ``.damaged-`` and the like


def manifest_of(step: Step, files: Path, metrics: Metrics, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of what a step wrote into the directory ``files``, which is flushed to the disk."""
    return {
        "manifest_version": MANIFEST_VERSION,
        "stage": step.stage.name,
        "label": step.label,
        "fingerprint": step.fingerprint,
        "payload": step.payload,
        "inputs": {name: list(ref) for name, ref in sorted(step.inputs.items())},
        "metrics": dict(metrics),
        "files": _described(files),
        "provenance": dict(provenance),
    }


def environment_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What of an artifact's circumstances could move a number: packages and commit."""
    provenance = manifest.get("provenance", {})
    return {"packages": provenance.get("packages"), "git": code_of(provenance.get("git"))}


def code_of(git: Mapping[str, Any] | None) -> str | None:
    """The commit that the code was, and whether it was just that."""
    if not git:
        return None
    return f"{git['commit']}{' with changes' if git.get('dirty') else ''}"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in an artifact's directory; empty when it is missing or unreadable."""
    try:
        return cast(dict[str, Any], json.loads((path / MANIFEST).read_bytes()))
    except (OSError, ValueError):
        return {}


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write it into an artifact's directory, durably."""
    write_durably(path / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))


def damage(path: Path, described: Mapping[str, Any]) -> str | None:
    """What in a directory is not as a manifest's ``files`` say: one missing, added or changed; None if all is well."""
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


def digest_of(stream: Any) -> str:
    """The sha256 of a stream's bytes, as manifests state it."""
    return hashlib.file_digest(stream, "sha256").hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write a text file and flush it to the disk."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def file_name(label: str) -> str:
    """``label`` as a readable, portable file name, to which digits can be added that tell it from others."""
    return portable(label)[:MAX_FILE_NAME]


def portable(label: str) -> str:
    """``label`` in the characters of file names, however long."""
    return re.sub(r"[^A-Za-z0-9_.=]+", "-", label).strip("-.") or "artifact"


def _described(directory: Path) -> dict[str, dict[str, Any]]:
    """``{relative path: {"size", "sha256"}}`` of every file below, each flushed to the disk."""
    return {
        path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "sha256": _digest(path, flush=True)}
        for path in sorted(p for p in directory.rglob("*") if p.is_file())
    }


def _digest(path: Path, flush: bool = False) -> str:
    with path.open("rb") as stream:
        digest = digest_of(stream)
        if flush:
            os.fsync(stream.fileno())
    return digest
