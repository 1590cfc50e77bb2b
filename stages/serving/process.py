"""Child processes that never outlive the step that started them."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from stages.errors import ConfigError, EngineError
from stages.processes import end_with_parent

_STOP_S = 20.0
_NUM_ERRORS, _NUM_LAST_LINES, _NUM_KEPT_LINES = 2, 4, 300
# vLLM ends every failed start with a line that only points back to the cause.
_ERROR, _NO_CAUSE = re.compile(r"\w(Error|Exception): "), "Engine core initialization failed"
# Children import this package from where this process did, wherever they are started.
_PYTHON_PATH = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])

Process = subprocess.Popen[str]


def spawn(command: Sequence[str], environment: Mapping[str, str], log: Path, *, piped: bool = False) -> Process:
    """Start a process in a group of its own; what it prints goes to ``log``, of a ``piped`` one only its errors."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": _PYTHON_PATH, **environment},
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else stream,
            stderr=stream,
            text=True,
            start_new_session=True,  # Ctrl-C lets the steps in flight finish
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )


def stop(process: Process) -> None:
    """End a process and its group; a second call does nothing."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)


class Server:
    """A process that answers HTTP on ``port`` of this machine."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, port: int) -> None:
        self.log, self.port = log, port
        self.url = f"http://127.0.0.1:{port}"
        self._process = spawn(command, environment, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def last_lines(self) -> str:
        """What it said before it failed, in one line: the first errors of its log, and how that ends."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR.search(line) and _NO_CAUSE not in line][:_NUM_ERRORS]
        last = lines[-_NUM_LAST_LINES:]
        return " | ".join([*(line for line in errors if line not in last), *last]) or "it wrote nothing"

    def wait_until_ready(self, timeout_s: float, owner: str) -> None:
        """Wait for its health; raises EngineError with the last lines of the log if it ends or takes too long."""
        import httpx

        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.is_alive:
                raise EngineError(f"{owner} did not start (exit {self._process.returncode}): {self.last_lines}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.5)
        raise EngineError(f"{owner} was not ready after {timeout_s:g} s (server.start_timeout_s): {self.last_lines}")

    def stop(self) -> None:
        """End it and everything it started; a second call does nothing."""
        stop(self._process)


def keep_logs(logs: Sequence[Path]) -> None:
    """Print the ends of logs that are about to be removed to the step's own."""
    for log in logs:
        if log.exists():
            lines = log.read_text(errors="replace").splitlines()[-_NUM_KEPT_LINES:]
            print(f"--- {log.name}", *lines, sep="\n", file=sys.stderr)


def free_port(wanted: int | None = None) -> int:
    """``wanted``, or one that nobody listens on; raises ConfigError for a port in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError:
            raise ConfigError(
                f"port {wanted} is in use: set server.port to another one, or null to have one chosen"
            ) from None
        port: int = probe.getsockname()[1]
        return port
