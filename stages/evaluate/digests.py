"""Canonical JSON, and what a document and its prompt are known by on both sides of a comparison."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def digest(value: Any) -> str:
    """Sha256 of canonical JSON."""
    return hashlib.sha256(dumps(value).encode("utf-8", "surrogatepass")).hexdigest()


def prompt_digest(instances: Sequence[Any]) -> str:
    """Sha256 over the kind, final text and arguments of every request of a document, in order."""
    return digest([[instance.request_type, list(instance.args)] for instance in instances])


def dumps(value: Any) -> str:
    """Canonical JSON: sorted keys, and a stable spelling of what JSON does not know."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
