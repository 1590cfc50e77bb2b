"""A batch that computes on GPUs, in a process of its own: only the end of a process gives all of their memory back.

What one engine leaves behind in its process, weights and graphs, keeps the next one from opening there.
"""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, cast

import psutil

from pipeline.running.batches import Batch
from pipeline.running.outcome import Outcome, RunContext
from pipeline.running.worker import run_batch
from stages.errors import one_line
from stages.processes import end_with_parent

POLL_S = 1.0
SPAWN = get_context("spawn")  # a fork would share what this process holds


def run_apart(batch: Batch, context: RunContext, upstream: Sequence[Outcome]) -> list[Outcome] | str:
    """``run_batch`` in a child process, which is killed with all it started if this one is interrupted.

    A child that dies is replaced, as Ray replaces a worker, and the next goes on with what is not published yet.
    Where there are no outcomes, a line says why.
    """
    for _ in range(1 + context.max_attempts * len(batch.steps)):
        child = _Child(batch, context, upstream)
        try:
            child.start()
            if not child.heard():
                return "a process of its own did not start for it; the terminal shows why"
            if (done := child.heard()) is not None:
                return cast(list[Outcome] | str, done)
        finally:
            child.end()
    return "the process that ran it died again and again"


class _Child:
    """A process that runs one batch, and whatever it starts."""

    def __init__(self, batch: Batch, context: RunContext, upstream: Sequence[Outcome]) -> None:
        self._receiver, sender = SPAWN.Pipe(duplex=False)
        arguments = (sender, os.getpid(), batch, replace(context, kills=True), upstream)
        self._process = SPAWN.Process(target=_work, args=arguments, name=batch.label)
        self._sender = sender
        self._started: set[psutil.Process] = set()

    def start(self) -> None:
        """Ctrl-C is this process's alone, also while the child is still importing: it never sees the signal."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._sender.close()

    def heard(self) -> Any:
        """What the child says next; None if it dies before.

        The end of the pipe says nothing of its death: what it forked may hold that open.
        """
        is_alive = True
        while is_alive:
            is_alive = self._process.is_alive()  # first, so that its last words are still looked for
            self._note_started()
            if self._receiver.poll(POLL_S if is_alive else 0):
                with suppress(EOFError, OSError):
                    return self._receiver.recv()
                return None
        return None

    def end(self) -> None:
        """Nothing that the child started may keep a GPU's memory, also where it died before it could end that."""
        if self._process.pid is None:
            return
        self._note_started()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        for process in self._started:  # with groups of their own
            with suppress(psutil.Error):
                process.kill()
        self._receiver.close()

    def _note_started(self) -> None:
        with suppress(psutil.Error):
            self._started.update(psutil.Process(self._process.pid).children(recursive=True))


def _work(sender: Connection, parent: int, batch: Batch, context: RunContext, upstream: Sequence[Outcome]) -> None:
    """In the child.  Ctrl-C lets the steps in flight finish: the parent asks for a stop by the ledger."""
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        return
    os.setsid()
    sender.send(True)
    try:
        sender.send(run_batch(batch, context, upstream))
    except Exception as error:  # of no step, or the batch would have said so
        sender.send(one_line(error))
