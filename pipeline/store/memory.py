"""What is slow to find out, remembered in files that may be lost or damaged at any time."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.store.storage import unique


def remember(path: Path, value: Any) -> bool:
    """Write JSON data with its digest; False where nothing can be written, which harms nobody."""
    partial = path.with_name(f".{path.name}-{unique()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"digest": _digest(value), "value": value}), encoding="utf-8")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        return False
    return True


def recall(path: Path) -> Any:
    """What ``remember`` wrote; None where there is nothing, or anything else."""
    try:
        found = json.loads(path.read_bytes())
        return found["value"] if found["digest"] == _digest(found["value"]) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
