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
from multiprocessing.context import SpawnProcess

import psutil

from pipeline.running.batches import Batch
from pipeline.running.outcome import Outcome, RunContext
from pipeline.running.worker import run_batch
from stages.errors import one_line
from stages.processes import end_with_parent

SPAWN = get_context("spawn")  # a fork would share what this process holds


def run_apart(batch: Batch, context: RunContext, upstream: Sequence[Outcome]) -> list[Outcome] | str:
    """``run_batch`` in a child process, which is killed with all it started if this one is interrupted.

    A child that dies is replaced, as Ray replaces a worker, and the next goes on with what is not published yet.
    Where there are no outcomes, a line says why.
    """
    for _ in range(1 + context.max_attempts * len(batch.steps)):
        receiver, sender = SPAWN.Pipe(duplex=False)
        arguments = (sender, os.getpid(), batch, replace(context, kills=True), upstream)
        child = SPAWN.Process(target=_work, args=arguments, name=batch.label)
        has_begun = False
        try:
            child.start()
            sender.close()  # the child's copy is then the last one, and its death an end of file
            with suppress(EOFError):
                has_begun = receiver.recv()
                done: list[Outcome] | str = receiver.recv()
                child.join()
                return done
        finally:
            _end(child)
            receiver.close()
        if not has_begun:
            return "a process of its own did not start for it; the terminal shows why"
    return "the process that ran it died again and again"


def _work(sender: Connection, parent: int, batch: Batch, context: RunContext, upstream: Sequence[Outcome]) -> None:
    """In the child.  Ctrl-C lets the steps in flight finish: the parent asks for a stop by the ledger."""
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sender.send(True)
    try:
        sender.send(run_batch(batch, context, upstream))
    except Exception as error:  # of no step, or the batch would have said so
        sender.send(one_line(error))


def _end(child: SpawnProcess) -> None:
    """Nothing that the child started may keep a GPU's memory."""
    if child.pid is None:
        return
    with suppress(psutil.Error):
        for process in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    child.kill()
    child.join()
