"""The part of the index that lm-eval brings, kept in this user's caches until a file below it changes.

Parsing its 14,000 files takes 2 s of every process that plans, asks or scores.  What is kept is there in a tenth of
that, and an entry is made when it is looked at.
"""

import contextlib
import hashlib
import os
import pickle
import platform
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages.local_files import user_cache

_Seen = tuple[str, int, int, int, int]  # the time of the last change as well: who copies a file may keep the other
_NO_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}


@dataclass(frozen=True, slots=True)
class KeptIndex(Mapping[str, Any]):
    """Entries by name, each unpickled the first time that it is asked for."""

    pickled: Mapping[str, bytes]
    folders: frozenset[str]  # of all entries' files
    _made: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = pickle.loads(self.pickled[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.pickled)

    def __len__(self) -> int:
        return len(self.pickled)


def kept(root: Path, build: Callable[[], Mapping[str, Any]]) -> KeptIndex:
    """``build()`` of the files below ``root``; made anew where nothing is kept of them, and where nothing can be."""
    stamp = _stamp(root)
    try:
        path = user_cache() / "tasks" / hashlib.sha256(str(root).encode()).hexdigest()[:32]
    except RuntimeError:  # nobody's home
        return _pickled(build())
    if (found := _recalled(path, stamp)) is None:
        _keep(path, stamp, found := _pickled(build()))
    return found


def _pickled(index: Mapping[str, Any]) -> KeptIndex:
    folders = frozenset(str(entry.path.parent) for entry in index.values() if entry.path is not None)
    return KeptIndex({name: pickle.dumps(entry) for name, entry in index.items()}, folders)


def _stamp(root: Path) -> bytes:
    """Of every file below it, whatever it is called: settings include what they like; and of what reads them."""
    # By its text: several checkouts of this project may use one environment, and would take turns otherwise.
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*index.py"))]
    versions = [platform.python_version(), yaml.__version__]
    return hashlib.sha256(repr([versions, code, sorted(_files(str(root)))]).encode()).digest()


def _files(folder: str, links: tuple[str, ...] = ()) -> Iterator[_Seen]:
    """``links`` were followed on the way: they may lead in a circle."""
    try:
        found = list(os.scandir(folder))
    except OSError:  # not to be read, also by what reads the tasks
        found = []
    for each in found:
        if not _is_folder(each):
            yield _seen(each)
        elif each.name not in _NO_FOLDERS:
            target = (os.path.realpath(each.path),) if each.is_symlink() else ()
            if not set(target).intersection(links):
                yield from _files(each.path, links + target)


def _is_folder(each: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link to itself
        return each.is_dir()
    return False


def _seen(file: os.DirEntry[str]) -> _Seen:
    with contextlib.suppress(OSError):  # a link to nowhere
        stat = file.stat()
        return file.path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
    return file.path, 0, 0, 0, 0


def _keep(path: Path, stamp: bytes, index: KeptIndex) -> None:
    """Behind a digest; where it cannot be written, the next process reads the files as well."""
    content = stamp + zlib.compress(pickle.dumps((dict(index.pickled), index.folders)), level=1)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(hashlib.sha256(content).digest() + content)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _recalled(path: Path, stamp: bytes) -> KeptIndex | None:
    """What ``_keep`` wrote of the same files; None where there is nothing, anything else, or another user's.

    Whoever writes a pickle runs what he likes in the process that reads it.
    """
    try:
        with path.open("rb") as stream:
            found = stream.read() if os.fstat(stream.fileno()).st_uid == os.geteuid() else b""
    except OSError:
        return None
    digest, content = found[: len(stamp)], found[len(stamp) :]
    if hashlib.sha256(content).digest() != digest or not content.startswith(stamp):
        return None
    return KeptIndex(*pickle.loads(zlib.decompress(content[len(stamp) :])))
