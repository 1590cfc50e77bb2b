"""What is slow to find out about the world, remembered beside the store until the world changes."""

from pathlib import Path
from typing import Any

from pipeline.steps.fingerprint import fingerprint
from pipeline.store.memory import recall, remember


def stamps(path: Path) -> list[list[Any]]:
    """Size, time and inode of every file: what tells a changed checkpoint without reading terabytes."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns, stat.st_ino] for file in files]


def cached(cache_dir: Path | None, key: Any, compute: Any) -> Any:
    """``compute()``, remembered under ``key`` in ``cache_dir``; without a writable directory it is computed anew."""
    if cache_dir is None:
        return compute()
    path = cache_dir / f"{fingerprint(key)[:32]}.json"
    value = recall(path)
    if value is None:
        remember(path, value := compute())
    return value
