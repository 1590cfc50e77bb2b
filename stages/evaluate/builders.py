"""Who builds a session's shards beside its engine: a thread, or processes of their own.

Prompts and their tokens take Python some 5 ms a document, which a thread would take from what feeds a GPU.  On a CPU
the engine has all cores, and processes more would only take memory.
"""

import os
import pickle
import signal
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stages.errors import one_line
from stages.evaluate.building import Built, Tasks, open_model, task_key
from stages.processes import end_with_parent

if TYPE_CHECKING:
    from stages.evaluate.config import AnswerConfig, EngineConfig
    from stages.evaluate.engines.harness_model import HarnessModel


class Builder(Protocol):
    """Builds shards in the order in which they are given, those of one task all in one place."""

    def submit(self, config: "AnswerConfig", data: Mapping[str, Path]) -> Future[Built]:
        """Begin with a shard as soon as there is time for it."""

    def close(self) -> None:
        """Drop what has not begun."""


class Here:
    """A thread of this process."""

    def __init__(self, model: "HarnessModel", work_dir: Path) -> None:
        self._tasks = Tasks(model, work_dir)
        self._thread = ThreadPoolExecutor(1, "builder")

    def submit(self, config: "AnswerConfig", data: Mapping[str, Path]) -> Future[Built]:
        return self._thread.submit(self._tasks.built, config, data)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class Apart:
    """Processes on half of the engine's cores, which begin with their imports at once."""

    def __init__(self, checkpoint: Path, engine: "EngineConfig", work_dir: Path) -> None:
        context = get_context("spawn")  # a fork would share what this process holds on a GPU
        places = [work_dir / f"builder_{number}" for number in range(max(1, engine.num_cpus // 2))]
        self._processes = [
            ProcessPoolExecutor(1, context, initializer=_begin, initargs=(os.getpid(), checkpoint, engine, place))
            for place in places
        ]
        self._of_task: dict[str, ProcessPoolExecutor] = {}
        for process in self._processes:
            process.submit(os.getpid)

    def submit(self, config: "AnswerConfig", data: Mapping[str, Path]) -> Future[Built]:
        next_one = self._processes[len(self._of_task) % len(self._processes)]
        process = self._of_task.setdefault(task_key(config, data), next_one)
        try:
            return process.submit(_build, config, data)
        except BrokenExecutor as error:  # it has died, which is told when the shard is asked for
            (failed := Future[Built]()).set_exception(error)
            return failed

    def close(self) -> None:
        """Also what has begun: nobody waits for it, and a GPU would."""
        for child in [child for process in self._processes for child in (process._processes or {}).values()]:
            child.kill()
        for process in self._processes:
            process.shutdown(cancel_futures=True)


_tasks: Tasks | None = None  # of such a process


def _begin(parent: int, checkpoint: Path, engine: "EngineConfig", work_dir: Path) -> None:
    global _tasks
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C lets the shard under way finish
    work_dir.mkdir()
    _tasks = Tasks(open_model(checkpoint, engine, work_dir), work_dir)


def _build(config: "AnswerConfig", data: Mapping[str, Path]) -> Built:
    assert _tasks is not None
    try:
        return _tasks.built(config, data)
    except Exception as error:
        if not _travels(error):
            raise RuntimeError(one_line(error)) from error
        raise


def _travels(error: Exception) -> bool:
    """Whether it arrives in another process; one that does not is taken for that process's death."""
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), Exception)
    except Exception:
        return False


def builder_beside(model: "HarnessModel", checkpoint: Path, engine: "EngineConfig", work_dir: Path) -> Builder:
    """The builder for an engine that is opened meanwhile."""
    return Apart(checkpoint, engine, work_dir) if engine.on_gpu else Here(model, work_dir)
