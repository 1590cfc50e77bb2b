"""Drafts: directories in which this machine makes or fetches something, and whether whoever does so still lives.

Beside a draft ``<stage>/.draft-<key>`` there is a lease ``drafts/<stage>-<key>``, an empty file whose time its owner
renews.  What has no lease is no draft of ours, whatever it is called.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.store.heartbeat import repeated

LEASES = "drafts"
RENEW_EVERY_S, SILENT_FOR_S = 30.0, 3600.0
_LEASE = re.compile(r"(?P<stage>\w+)-(?P<key>[0-9a-f]{12}-(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{8})")


@contextlib.contextmanager
def draft_directory(local: Path, stage: str, digits: str) -> Iterator[Path]:
    """An empty directory beside a stage's artifacts, gone afterwards whatever happens."""
    key = f"{digits}-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    path, lease = local / stage / f".draft-{key}", local / LEASES / f"{stage}-{key}"
    lease.parent.mkdir(parents=True, exist_ok=True)
    lease.touch(exist_ok=False)
    try:
        with repeated(lambda: os.utime(lease), RENEW_EVERY_S):
            path.mkdir(parents=True)
            yield path
    finally:
        _drop(path, lease)


def remove_abandoned(local: Path) -> int:
    """Delete the drafts whose owner is gone; returns how many."""
    leases = [lease for lease in (local / LEASES).glob("*") if _LEASE.fullmatch(lease.name)]
    return sum(_drop(_path_of(lease), lease) for lease in leases if _is_abandoned(lease))


def _drop(path: Path, lease: Path) -> bool:
    """Whether there was a draft.  The lease goes last: a draft that cannot be removed now is known later."""
    was_there = path.is_dir()
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        with contextlib.suppress(OSError):
            lease.unlink(missing_ok=True)
    return was_there


def _path_of(lease: Path) -> Path:
    owner = _LEASE.fullmatch(lease.name)
    assert owner is not None
    return lease.parent.parent / owner["stage"] / f".draft-{owner['key']}"


def _is_abandoned(lease: Path) -> bool:
    """Where process numbers mean what they mean here the owner itself is asked for, elsewhere its renewals tell."""
    owner = _LEASE.fullmatch(lease.name)
    assert owner is not None
    if owner["machine"] == _machine():
        return not _exists(int(owner["pid"]))
    try:
        return _now_s(lease.parent) - lease.stat().st_mtime > SILENT_FOR_S
    except OSError:  # gone, or a store that is only read
        return False


def _now_s(directory: Path) -> float:
    """The time by the clock that dates the files of a directory, which may be another machine's."""
    probe = directory / f".probe-{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


@functools.cache
def _machine() -> str:
    """This boot of this machine, and the namespace in which its process numbers hold.

    A name is no proof of either: containers share host names, and each may count its processes from 1.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        known = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        known = uuid.uuid4().hex  # like no other: only renewals tell
    return hashlib.sha256(known.encode()).hexdigest()[:12]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        return True
    return True
