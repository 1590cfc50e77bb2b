"""Limits on one step: too long or too much memory, and this process ends with everything it started.

A hung or swelling library call cannot be stopped from inside; only the death of the process frees its GPU and memory.
The runner then starts a new worker, which goes on with what is not published yet.
"""

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil

from pipeline.errors import FailureClass
from stages.units import GIB

CHECK_EVERY_S = 0.5
# A thread that holds the interpreter's lock (a regular expression that backtracks for ever) keeps the watching thread
# from running; this much later the C-level timer of faulthandler ends the process without it.
LOCKED_GRACE_S = 30.0
# Ray's own monitor kills a worker at 95 % of a node's memory and gives no class; ours comes before it.
LEAST_AVAILABLE = 0.06
GUILTY_SHARE = 0.25

OnKill = Callable[[FailureClass, str], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step may take; None is no limit."""

    timeout_s: float | None = None
    memory_gib: float | None = None  # resident, of this process and all it started


@contextlib.contextmanager
def watched(limits: Limits, on_kill: OnKill) -> Iterator[None]:
    """Enforce ``limits`` on the block.  Beyond them ``on_kill`` hears why, and the process is killed."""
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(limits, on_kill, done), daemon=True)
    watcher.start()
    if limits.timeout_s is not None:
        grace_s = min(LOCKED_GRACE_S, limits.timeout_s)
        faulthandler.dump_traceback_later(limits.timeout_s + grace_s, exit=True, file=2)
    try:
        yield
    finally:
        done.set()
        if limits.timeout_s is not None:
            faulthandler.cancel_dump_traceback_later()
        watcher.join()


def _watch(limits: Limits, on_kill: OnKill, done: threading.Event) -> None:
    started = time.monotonic()
    while not done.wait(CHECK_EVERY_S):
        if limits.timeout_s is not None and time.monotonic() - started > limits.timeout_s:
            _end(on_kill, FailureClass.timeout, f"took longer than {limits.timeout_s:g} s (cluster.timeout_s)")
        if excess := _excess(limits.memory_gib):
            _end(on_kill, FailureClass.oom, excess)


def _excess(limit_gib: float | None) -> str | None:
    """What is wrong with the memory that this process and its children occupy, if something is."""
    memory = psutil.virtual_memory()
    is_scarce = memory.available < LEAST_AVAILABLE * memory.total
    if limit_gib is None and not is_scarce:
        return None
    used = _resident_bytes()
    if limit_gib is not None and used > limit_gib * GIB:
        return f"took {used / GIB:.1f} GiB of memory, more than its {limit_gib:g} GiB (cluster.stages.*.memory_gib)"
    if is_scarce and used > GUILTY_SHARE * memory.total:
        return f"took {used / GIB:.1f} GiB and the node's memory ran out: give it fewer neighbours or a larger node"
    return None


def _resident_bytes() -> int:
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def _end(on_kill: OnKill, failure_class: FailureClass, message: str) -> None:
    """Tell, leave every thread's stack in the step's log, and end this process and everything it started."""
    with contextlib.suppress(Exception):
        on_kill(failure_class, message)
    faulthandler.dump_traceback(file=2)
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os.kill(os.getpid(), signal.SIGKILL)
