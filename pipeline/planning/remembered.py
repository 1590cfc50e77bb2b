"""What is slow to find out about the world, remembered beside the store until the world changes."""

import json
import os
from pathlib import Path
from typing import Any

from pipeline.steps.fingerprint import fingerprint
from pipeline.store.manifest import write_durably


def stamps(path: Path) -> list[list[Any]]:
    """Size, time and inode of every file: what tells a changed checkpoint without reading terabytes."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns, stat.st_ino] for file in files]


def cached(cache_dir: Path | None, key: Any, compute: Any) -> Any:
    """``compute()``, remembered under ``key`` in ``cache_dir``; without a writable directory it is computed anew."""
    if cache_dir is None:
        return compute()
    path = cache_dir / f"{fingerprint(key)[:32]}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = compute()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        write_durably(partial, json.dumps(value))
        partial.replace(path)
    except OSError:
        pass
    return value
