"""What goes wrong, as values and exceptions that name the fix."""

import errno
from collections.abc import Iterator
from enum import Enum

from stages.errors import ExplainedError, StageError


class UserError(ExplainedError):
    """Bad input, found before any expensive work; exit code 2."""


class FailureClass(Enum):
    """Why a step failed; the ledger records it and the runner decides by it."""

    oom = "oom"
    crash = "crash"
    timeout = "timeout"
    engine = "engine"
    checkpoint = "checkpoint"
    data = "data"
    config = "config"
    sandbox = "sandbox"
    judge = "judge"
    disk = "disk"
    upstream = "upstream"


class Retry(Enum):
    """What a run does by itself after a failure; a failure of the work, not the machine, would only repeat itself."""

    never = "never"
    again = "again"  # after a pause, up to max_attempts
    smaller = "smaller"  # once, with a smaller batch
    stop = "stop"  # the whole run stops: every other step would fail in the same way


RETRY = {
    FailureClass.oom: Retry.smaller,
    FailureClass.timeout: Retry.again,
    FailureClass.engine: Retry.again,
    FailureClass.judge: Retry.again,
    FailureClass.disk: Retry.stop,
    FailureClass.crash: Retry.never,  # an exception nobody foresaw; a worker's death is counted by the ledger
    FailureClass.checkpoint: Retry.never,
    FailureClass.data: Retry.never,
    FailureClass.config: Retry.never,
    FailureClass.sandbox: Retry.never,
    FailureClass.upstream: Retry.never,
}


_NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Libraries that write weights, safetensors among them, raise errors of their own that only quote the system's.
_NO_DISK_SAID = ("no space left on device", "disk quota exceeded", "os error 28)", "os error 122)")


def classify(error: BaseException) -> FailureClass:
    """The failure class of an exception raised by a stage; the machine's troubles count wherever they are wrapped."""
    for cause in _chain(error):
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return FailureClass.oom
        if isinstance(cause, OSError) and cause.errno in _NO_DISK:
            return FailureClass.disk
        if any(said in str(cause).lower() for said in _NO_DISK_SAID):
            return FailureClass.disk
    if isinstance(error, StageError):
        # An engine in a process of its own reports only text.
        is_oom = error.failure_class == "engine" and "out of memory" in str(error).lower()
        return FailureClass.oom if is_oom else FailureClass(error.failure_class)
    return FailureClass.crash


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
