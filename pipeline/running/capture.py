"""Everything that a step prints, kept in a log of its own."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pipeline.steps.step import Step
from pipeline.store.manifest import file_name
from stages.errors import redacted


def log_path(directory: Path, step: Step) -> Path:
    """Where everything that a step prints is kept, below a store's ``local`` directory."""
    return directory / "logs" / step.stage.name / f"{file_name(step.label)}-{step.fingerprint[:12]}.log"


class _Redirected(io.TextIOBase):
    """What ``sys.stdout`` or ``sys.stderr`` is during steps, for good: libraries (loguru) keep the stream they meet."""

    def __init__(self, stream: TextIO) -> None:
        self.target = stream

    def write(self, text: str) -> int:
        return self.target.write(text)

    def flush(self) -> None:
        self.target.flush()

    def fileno(self) -> int:
        return self.target.fileno()

    def isatty(self) -> bool:
        return False


_STREAMS = {name: _Redirected(getattr(sys, name)) for name in ("stdout", "stderr")}


@contextlib.contextmanager
def captured(log: Path) -> Iterator[None]:
    """Append to ``log`` everything this process and its children print, through Python or past it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", errors="replace") as stream:
        saved = [os.dup(descriptor) for descriptor in (1, 2)]
        before, begun_at = {name: getattr(sys, name) for name in _STREAMS}, stream.tell()
        try:
            for name, redirected in _STREAMS.items():
                redirected.target = stream
                setattr(sys, name, redirected)
            _point(stream.fileno(), stream.fileno())
            yield
        finally:
            _point(*saved)
            for descriptor in saved:
                os.close(descriptor)
            for name, original in before.items():
                _STREAMS[name].target = original
                setattr(sys, name, original)
            with contextlib.suppress(OSError):  # on a full disk it stays as it is
                _leave_secrets_out(log, begun_at)


def _leave_secrets_out(log: Path, begun_at: int) -> None:
    """What libraries and other programs print, from a position on, passes no hand of ours before it lies in the log."""
    # In its place, because an engine that outlives the step goes on adding to this file.
    with log.open("r+", encoding="utf-8", errors="replace") as stream:
        stream.seek(begun_at)
        lines = list(stream)
        clean = [redacted(line) for line in lines]
        if clean != lines:
            stream.seek(begun_at)
            stream.writelines(clean)
            stream.truncate()


def _point(stdout: int, stderr: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a log on a full disk must not keep the descriptors from being restored
            stream.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
