"""What is slow to find out about the world, remembered beside the store until the world changes."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.steps.fingerprint import fingerprint
from pipeline.store.memory import recall, remember
from stages.local_files import user_cache


def stamps(path: Path, leave_out: Path | None = None) -> list[list[Any]]:
    """Size, time and inode of every file: what tells a changed checkpoint without reading terabytes."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return stamps_of(file for file in files if leave_out is None or not file.is_relative_to(leave_out))


def stamps_of(files: Iterable[Path]) -> list[list[Any]]:
    """The same of files that are named."""
    return [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns, stat.st_ino] for file in files]


def cached(
    cache_dir: Path | None, key: Any, compute: Callable[[], Any], still_holds: Callable[[Any], bool] = lambda _: True
) -> Any:
    """``compute()``, remembered under ``key`` in ``cache_dir``; without a writable directory it is computed anew.

    So it is where what was remembered does not hold any more.
    """
    if cache_dir is None:
        return compute()
    path = cache_dir / f"{fingerprint(key)[:32]}.json"
    value = recall(path)
    if value is None or not still_holds(value):
        remember(path, value := compute())
    return value


def of_this_user() -> Path:
    """Where what holds for every store on this machine is remembered."""
    return user_cache() / "plans"
