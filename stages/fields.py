"""How a config field says whether it is part of an artifact's identity.

Every field of every stage config is made with ``identity`` or ``execution``; a test fails for a field that is not.  A
field added after results exist may pass ``neutral=``: the value that means "as before" and is left out of the
fingerprint, so old results stay valid.
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, field
from typing import Any


def identity(default: Any = MISSING, *, factory: Callable[[], Any] | None = None, **metadata: Any) -> Any:
    """A field that can change the bytes of the output: part of the fingerprint."""
    return _field(default, factory, {"identity": True} | metadata)


def execution(default: Any = MISSING, *, factory: Callable[[], Any] | None = None) -> Any:
    """A field that says where, how fast or under what label a step runs: never part of the fingerprint."""
    return _field(default, factory, {"identity": False})


def command(default: Any = MISSING, *, factory: Callable[[], Any] | None = None) -> Any:
    """A field that belongs to one command or one machine: not even part of what a sweep is, wherever it is run."""
    return _field(default, factory, {"identity": False, "command": True})


def is_command(field: Field[Any]) -> bool:
    """Whether a field was made with ``command``."""
    return bool(field.metadata.get("command"))


def _field(default: Any, factory: Callable[[], Any] | None, metadata: dict[str, Any]) -> Any:
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)
