"""What goes wrong, as values and exceptions that name the fix."""

import errno
from enum import Enum

from stages.errors import StageError


class UserError(Exception):
    """Bad input, found before any expensive work.  One line: what is wrong and how to fix it; exit code 2."""


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


def classify(error: BaseException) -> FailureClass:
    """The failure class of an exception raised by a stage."""
    if isinstance(error, StageError):
        return FailureClass(error.failure_class)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return FailureClass.oom
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return FailureClass.disk
    return FailureClass.crash


def one_line(error: BaseException | str, limit: int = 400) -> str:
    """The first informative line of an error, short enough for a table cell."""
    text = str(error).strip() or type(error).__name__
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    if isinstance(error, BaseException) and not isinstance(error, (StageError, UserError)):
        line = f"{type(error).__name__}: {line}"
    return line if len(line) <= limit else line[: limit - 1] + "…"
