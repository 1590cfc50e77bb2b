"""What a step is, as a hash of its recipe: never where, when or on what it runs.

``sha256(canonical_json([FINGERPRINT_VERSION, stage, VERSION, identity(config), {input: fingerprint}]))``
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

FINGERPRINT_VERSION = 1

_UNSET = object()
ABSENT = "(absent)"  # stands for a leaf that one of two payloads does not have


def canonical(value: object) -> Any:
    """``value`` as plain JSON data, identity fields only.

    Raises TypeError for whatever has no single obvious encoding (sets, paths, non-string keys, non-finite floats,
    fields whose author has not said whether they are identity): a guess here would be a wrong cache hit later.
    """
    match value:
        case Enum():
            return canonical(value.value)
        case None | bool() | int() | str():
            return value
        case float():
            return _finite(value)
        case list() | tuple():
            return [canonical(item) for item in value]
        case Mapping():
            return {_text_key(key): canonical(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _identity_fields(value)
    raise TypeError(f"cannot fingerprint a {type(value).__qualname__}: use plain data, enums or dataclasses")


def canonical_json(value: object) -> str:
    """The one text of ``canonical(value)``: sorted keys, no spaces, UTF-8 kept."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def payload(stage: str, version: int, config: object, inputs: Mapping[str, str]) -> list[Any]:
    """The canonical description that a fingerprint hashes and a manifest stores."""
    return [FINGERPRINT_VERSION, stage, version, canonical(config), dict(sorted(inputs.items()))]


def fingerprint(description: object) -> str:
    """sha256 (64 hex digits) of a payload."""
    return hashlib.sha256(canonical_json(description).encode()).hexdigest()


def described(payload: Sequence[Any]) -> dict[str, Any]:
    """A payload with its parts named, so that ``differences`` can name a field."""
    return dict(zip(("fingerprint_version", "stage", "version", "config", "inputs"), payload, strict=True))


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """``(path, old, new)`` for every leaf that differs between two canonical payloads; see ``ABSENT``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            d
            for key in keys
            for d in differences(old.get(key, ABSENT), new.get(key, ABSENT), f"{prefix}.{key}" if prefix else key)
        ]
    # Compared as text: in Python 1, 1.0 and True are equal, in a fingerprint they are not.
    return [] if canonical_json(old) == canonical_json(new) else [(prefix, old, new)]


def _identity_fields(value: Any) -> dict[str, Any]:
    fields = {}
    for field in dataclasses.fields(value):
        if "identity" not in field.metadata:
            raise TypeError(
                f"{type(value).__name__}.{field.name}: say whether it is identity or execution (stages.fields)"
            )
        item = getattr(value, field.name)
        if field.metadata["identity"] and item != field.metadata.get("neutral", _UNSET):
            fields[field.name] = canonical(item)
    return fields


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise TypeError(f"cannot fingerprint the non-finite float {value!r}")
    return value


def _text_key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"cannot fingerprint a mapping with the key {key!r}: keys must be strings")
    return key
