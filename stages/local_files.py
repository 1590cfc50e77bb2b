"""Local files that belong to what is asked for: found by names and patterns that settings give, copied, digested."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stages.errors import DataError


@dataclass(frozen=True, slots=True)
class Parts:
    """``code`` digests what some files mean; those that are ``apart``, by real paths, count no more than that."""

    code: str = ""
    apart: tuple[str, ...] = ()


def found(name: str) -> list[Path]:
    """The files of a name: a file, a folder with all below it, or a pattern.  Raises DataError where there is none."""
    path = Path(name)
    if path.is_file():
        return [path]
    matches = [path] if path.is_dir() else sorted(Path(path.anchor).glob(name.lstrip("/")))
    files = [file for match in matches for file in ([match] if match.is_file() else _below(match))]
    if not files:
        raise DataError(f"{name} is not there, or holds no files")
    return list(dict.fromkeys(files))


def user_cache() -> Path:
    """Where what holds for this user on this machine is kept.  Raises RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantsweep"


def digest_files(names: Iterable[str], apart: Collection[str] = ()) -> str:
    """Sha256 over the files of each name in turn: their contents, and their places from where the name is.

    Without those that are ``apart``, by their real paths.
    """
    files = [(file, name) for name in names for file in found(name) if os.path.realpath(file) not in apart]
    rows = [[_place(file, name), _digest(file)] for file, name in files]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def digest_tree(path: Path) -> str:
    """Sha256 over the sorted (relative path, size, sha256) of every file under ``path``; DataError if there is none."""
    files = sorted(files_below(path), key=lambda file: -file.stat().st_size)  # the largest decides how long it takes
    if not files:
        raise DataError(f"{path} is not a directory with files in it")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        digests = threads.map(_digest, files)
        rows = [
            [file.relative_to(path).as_posix(), file.stat().st_size, digest]
            for file, digest in zip(files, digests, strict=True)
        ]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def files_below(path: Path) -> Iterator[Path]:
    """Every one, hidden or not."""
    for folder, _, names in os.walk(path, followlinks=True):
        yield from (Path(folder, name) for name in names)


def copy_files(source: Path, files: Iterable[Path], out: Path) -> None:
    """Files of ``source`` to the same places in ``out``."""
    for file in files:
        target = out / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def files_in(folder: Path) -> list[Path]:
    """Those that lie directly in it, but for compiled ones."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc")


def local_identity(
    home: Path | None,
    parts: Parts,
    reads: Sequence[str],
    digest: Callable[[Sequence[str], Collection[str]], str] = digest_files,
) -> str:
    """Digests of a task's own folder, and of what ``reads`` names, which lies elsewhere."""
    own = "" if home is None else f"+{Path(os.path.realpath(home)).name}-{_digest_home(home, parts)[:12]}"
    named = [name for name in reads if any(os.path.realpath(file) not in parts.apart for file in found(name))]
    return own + (f"+files-{digest(named, parts.apart)[:12]}" if named else "")


def _digest_home(home: Path, parts: Parts) -> str:
    files = [path for path in files_in(home) if os.path.realpath(path) not in parts.apart]
    return hashlib.sha256(json.dumps([parts.code, [[path.name, _digest(path)] for path in files]]).encode()).hexdigest()


def _below(folder: Path) -> Iterator[Path]:
    """Without what is hidden or compiled, which no data library reads."""
    for path, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(path, name) for name in sorted(names) if not name.startswith(".") and name[-4:] != ".pyc")


def _place(file: Path, name: str) -> str:
    """From the folder that is named, or from the last that a pattern names plainly: the same on every machine."""
    start = Path(name)
    while glob.has_magic(str(start)) and not start.exists():
        start = start.parent
    return file.name if file == start else os.path.relpath(file, start)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
