"""Batches that compute on GPUs, each in a process of its own: only the end of a process gives all of their memory back.

What one engine leaves behind in its process, weights and graphs, keeps the next one from opening there.  A process is
started while the batch before it computes, and imports what its own will need: some 20 s that no GPU waits for.
"""

import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import psutil

from pipeline.running.batches import Batch
from pipeline.running.capture import captured
from pipeline.running.outcome import Outcome, RunContext
from pipeline.running.worker import ProcessUsedUpError, run_batch
from pipeline.steps.stages import Stage
from pipeline.steps.step import Step
from stages.errors import one_line
from stages.processes import end_with_parent

SPAWN = get_context("spawn")  # a fork would share what this process holds
ENDED_S = 60.0  # until what was killed has ended: a driver takes its time to give back a hundred GiB
# What a child says, before outcomes or a line that says why not.
READY, PREPARED, DONE, REFUSED = "ready", "prepared", "done", "refused"


@dataclass(slots=True)
class _UnderWay:
    batch: Batch
    upstream: Sequence[Outcome]
    num_deaths: int = 0
    num_unprepared: int = 0  # of them before the batch was looked at


class GpuLane:
    """One batch at a time, in a child process that is killed with all it started when the lane is left.

    A child that dies is replaced, as Ray replaces a worker, and the next goes on with what is not published yet.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = replace(context, kills=True)
        self._under_way: _UnderWay | None = None
        self._child: _Child | None = None
        self._next: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for child in (self._child, self._next):
            if child is not None:
                child.end()

    def expect(self, step: Step) -> None:
        """Start the process for the batch of this step ahead."""
        self._next = _Child(step)

    def begin(self, batch: Batch, upstream: Sequence[Outcome], expected: Step | None) -> None:
        """Hand over a batch; that of the step ``expected`` will probably follow it."""
        self._under_way = _UnderWay(batch, upstream)
        self._give(self._under_way)
        if expected is not None and not batch.resources.is_alone:  # its imports would be measured along
            self.expect(expected)

    def outcomes(self, wait_s: float) -> list[Outcome] | str | None:
        """How the batch ended, or a line that says why nobody knows; None while it is under way, after ``wait_s``."""
        assert self._child is not None and self._under_way is not None
        if (said := self._child.heard(wait_s)) is None:
            if self._child.is_alive:
                return None
            return self._replaced(self._under_way)
        kind, what = said
        if kind in (READY, PREPARED):
            return None
        self._ended()
        return cast(list[Outcome] | str, what)

    def _give(self, work: _UnderWay) -> None:
        """The process that was started ahead takes it, wherever that is with its imports.

        Not one of other GPUs: which of them a process sees is settled when CUDA is first asked.
        """
        if self._next is not None and self._next.gpus != _visible_gpus():
            self._next.end()
            self._next = None
        self._child, self._next = self._next or _Child(work.batch.steps[0]), None
        self._child.give(work.batch, self._context, work.upstream)

    def _replaced(self, work: _UnderWay) -> str | None:
        assert self._child is not None
        if not self._child.was_ready:
            self._ended()
            return "a process of its own did not start for it; the terminal shows why"
        work.num_deaths += 1
        work.num_unprepared += not self._child.was_prepared
        if work.num_unprepared > self._context.max_attempts:
            self._ended()
            return f"the process for it died at its imports {work.num_unprepared} times; the terminal may show why"
        if work.num_deaths > self._context.max_attempts * len(work.batch.steps):
            self._ended()
            return "the process that ran it died again and again"
        self._child.end()
        self._give(work)
        return None

    def _ended(self) -> None:
        assert self._child is not None
        self._child.end()
        self._child = self._under_way = None


class _Child:
    """A process that prepares for a step, runs one batch, and whatever it starts."""

    def __init__(self, step: Step) -> None:
        self._connection, other = SPAWN.Pipe()
        arguments = (other, os.getpid(), step.stage, step.config)
        self._process = SPAWN.Process(target=_work, args=arguments, name=step.stage.name)
        self._started: set[psutil.Process] = set()
        self.gpus = _visible_gpus()
        self.was_ready = self.was_prepared = False
        ensure_running()  # which lets signals in again when it starts with the first process
        # Ctrl-C is this process's alone, also while the child is still importing: it never sees the signal.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            other.close()

    def give(self, batch: Batch, context: RunContext, upstream: Sequence[Outcome]) -> None:
        """Let it run a batch; one that has died meanwhile is found out when it is heard."""
        with suppress(OSError):
            self._connection.send((batch, context, upstream))

    def heard(self, wait_s: float) -> Any:
        """What the child says next, within ``wait_s``; None if it says nothing.

        The end of the pipe says nothing of its death: what it forked may hold that open.
        """
        is_alive = self.is_alive  # first, so that its last words are still looked for
        self._note_started()
        if self._connection.poll(wait_s if is_alive else 0):
            with suppress(EOFError, OSError):
                said = self._connection.recv()
                self.was_ready |= said[0] == READY
                self.was_prepared |= said[0] == PREPARED
                return said
        return None

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def end(self) -> None:
        """Nothing that the child started may keep a GPU's memory, also where it died before it could end that."""
        self._note_started()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(cast(int, self._process.pid), signal.SIGKILL)
        self._process.kill()
        self._process.join()
        for process in self._started:  # with groups of their own
            with suppress(psutil.Error):
                process.kill()
        _wait_until_ended(cast(int, self._process.pid), self._started)
        self._connection.close()

    def _note_started(self) -> None:
        with suppress(psutil.Error):
            self._started.update(psutil.Process(self._process.pid).children(recursive=True))


def _wait_until_ended(leader: int, started: Iterable[psutil.Process]) -> None:
    """What killed processes hold is free when they have ended; of those that nobody collects no more than a name is
    left.
    """
    deadline = time.monotonic() + ENDED_S
    while time.monotonic() < deadline and any(map(_is_alive, (*_members(leader), *started))):
        time.sleep(0.02)


def _members(leader: int) -> Iterator[psutil.Process]:
    """The processes of a group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, 0)
        for process in psutil.process_iter():
            with suppress(OSError):
                if os.getpgid(process.pid) == leader:
                    yield process


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _visible_gpus() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _work(connection: Connection, parent: int, stage: Stage, config: Any) -> None:
    """In the child.  Ctrl-C lets the steps in flight finish: the parent asks for a stop by the ledger."""
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        return
    os.setsid()
    connection.send((READY, None))
    # What fails here fails again in the step, where somebody looks for it.
    with suppress(Exception), captured(Path(os.devnull)):
        stage.prepare(config)
    connection.send((PREPARED, None))
    try:
        connection.send((DONE, run_batch(*connection.recv())))
    except ProcessUsedUpError:
        return
    except Exception as error:  # of no step, or the batch would have said so
        connection.send((REFUSED, one_line(error)))
