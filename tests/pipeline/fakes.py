"""Stages for tests of the engine: they only write what they are told, or fail as they are told."""

import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from pipeline.steps.stages import Stage
from pipeline.steps.step import Resources, Step, StepRef
from stages.errors import DataError, EngineError
from stages.fields import execution, identity

VERSION = 3
KEPT: list[TextIO] = []


@dataclass(kw_only=True, slots=True)
class NoteConfig:
    """``behaviour`` is one of those in ``_behave``; ``batch`` is what ``smaller`` halves.

    "in turn N of T until MARK" ends when N - 1 others began after it, or all T did and MARK is there: all do if N run
    side by side and another begins whenever one ends.
    """

    text: str = identity()
    behaviour: str = execution("write")
    batch: int = execution(4)
    task: str = execution("")
    scratch: str = execution("")  # a directory for marks that outlive a process
    seconds: float = execution(0.5)  # of what is slow


def write_note(config: NoteConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write the text of the inputs and of the config."""
    if config.scratch:
        with (Path(config.scratch) / "calls").open("a") as calls:
            calls.write(f"{config.text}\n")
    _behave(config)
    before = "".join((path / "note.txt").read_text() for _, path in sorted(inputs.items()))
    (out / "note.txt").write_text(before + config.text)
    print(f"wrote {config.text}")
    return {"length": float(len(before + config.text)), "unknown": None}


def prepare(config: NoteConfig) -> None:
    """Leave a mark."""
    if config.scratch:
        (Path(config.scratch) / f"prepared-{config.text}").touch()
    if config.behaviour == "die_at_imports":
        _tell_pid(config, os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)


def smaller(config: NoteConfig) -> NoteConfig | None:
    return None if config.batch == 1 else replace(config, batch=config.batch // 2)


def _behave(config: NoteConfig) -> None:
    match config.behaviour:
        case "data_error":
            raise DataError("the data is odd: look at it")
        case "engine_error":
            raise EngineError("the engine died")
        case "engine_error_once" if _first_time(config):
            raise EngineError("the engine died")
        case "large_batches_do_not_fit" if config.batch > 2:
            raise MemoryError(f"a batch of {config.batch}")
        case "no_batch_fits":
            raise MemoryError(f"a batch of {config.batch}")
        case "disk_full":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "no_login":
            raise ConnectionError("https://me:sesame@host/x?token=sesame does not answer")
        case "bug":
            raise KeyError("nobody thought of this")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die_once" if _first_time(config):
            os.kill(os.getpid(), signal.SIGKILL)
        case _ if config.behaviour.startswith("in turn "):
            _take_turn(config, *config.behaviour.split()[2::2])
        case "lose_parent_once" if _first_time(config):
            _tell_pid(config, os.getpid())
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        case "segfault":
            ctypes.string_at(0)
        case "memory_bomb":
            _swell()
        case "hang":
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            (Path(config.scratch) / f"child-{config.text}").write_text(str(child.pid))
            time.sleep(600)
        case "hang_in_c":
            re.match(r"(a|a|aa)+$", "a" * 60 + "b")  # holds the interpreter's lock
        case "keep_stderr":
            KEPT.append(sys.stderr)
        case "use_kept_stderr":
            KEPT[-1].write("through the kept stream")
        case "mark":
            (Path(config.scratch) / f"mark-{config.text}").touch()
        case "tell_pid":
            _tell_pid(config, os.getpid())
        case "die_after_a_fork":
            if (child := os.fork()) == 0:
                time.sleep(600)
            _tell_pid(config, child)
            os.kill(os.getpid(), signal.SIGKILL)
        case "die_after_a_start":
            _tell_pid(config, subprocess.Popen(["sleep", "600"]).pid)
            os.kill(os.getpid(), signal.SIGKILL)
        case "slow":
            time.sleep(config.seconds)
        case _ if config.behaviour.startswith("await "):
            _await(Path(config.scratch) / config.behaviour.removeprefix("await "))


def _await(mark: Path) -> None:
    _wait_for(mark.exists, mark.name)


def _take_turn(config: NoteConfig, width: str, total: str, mark: str) -> None:
    """And die, the first time, where the step is called so."""
    turns = Path(config.scratch) / "turns"
    with turns.open("a") as begun:
        begun.write(f"{config.text}\n")
    last = turn_order(turns).index(config.text) + int(width)
    _wait_for(lambda: len(turn_order(turns)) >= min(int(total), last), f"the turn after {config.text}")
    if last > int(total):
        _await(turns.with_name(mark))
    if config.text == "killed" and _first_time(config):
        os.kill(os.getpid(), signal.SIGKILL)


def turn_order(turns: Path) -> list[str]:
    """Texts, as they first began."""
    return list(dict.fromkeys(turns.read_text().splitlines()))


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise DataError(f"{what} never came")
        time.sleep(0.02)


def _tell_pid(config: NoteConfig, pid: int) -> None:
    with (Path(config.scratch) / "pids").open("a") as pids:
        pids.write(f"{pid}\n")


def _first_time(config: NoteConfig) -> bool:
    mark = Path(config.scratch) / f"first-{config.text}"
    if mark.exists():
        return False
    mark.touch()
    return True


def _swell() -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(2**20)) * 200)
        time.sleep(0.05)


def session_key(config: NoteConfig) -> str:
    return "one"


class Served(list[str]):
    """What was served, and a mark for each opening, exchange and closing."""

    def __init__(self, config: NoteConfig) -> None:
        super().__init__()
        self._marks = Path(config.scratch) / "sessions"

    def mark(self, what: str) -> None:
        with self._marks.open("a") as marks:
            marks.write(f"{what}\n")


@contextmanager
def open_session(config: NoteConfig, inputs: Mapping[str, Path]) -> Iterator[Served]:
    """Refused where the step says so."""
    session = Served(config)
    session.mark("open")
    if config.behaviour == "no_session":
        raise EngineError("the engine did not start")
    yield session
    session.mark("close")


def exchange(inputs: Mapping[str, Path], session: Served) -> None:
    """Refused of a checkpoint that calls itself odd."""
    session.mark("exchange")
    if "odd" in (inputs["checkpoint"] / "note.txt").read_text():
        raise EngineError("it is odd")


def serve_note(config: NoteConfig, inputs: Mapping[str, Path], out: Path, session: Served) -> Mapping[str, float]:
    """Like ``write_note``, in a session."""
    session.append(config.text)
    write_note(config, inputs, out)
    return {"served": float(len(session))}


ONE_CPU = Resources(num_cpus=1)
NOTE = Stage("note", "tests.pipeline.fakes", "write_note")
SERVE = Stage("serve", "tests.pipeline.fakes", "serve_note", sessions=True)


def note(
    text: str, *upstream: Step, after: tuple[Step, ...] = (), resources: Resources = ONE_CPU, **config: Any
) -> Step:
    """A step that writes ``text`` after what its inputs wrote."""
    inputs: dict[str, StepRef] = {f"input{index}": step.ref for index, step in enumerate(upstream)}
    return Step(
        stage=NOTE,
        config=NoteConfig(text=text, **config),
        label=text,
        inputs=inputs,
        after=tuple(step.ref for step in after),
        resources=resources,
    )


def serving(
    text: str,
    checkpoint: Step,
    *upstream: Step,
    family: str = "",
    after: tuple[Step, ...] = (),
    resources: Resources = ONE_CPU,
    **config: Any,
) -> Step:
    """A step of a stage with sessions."""
    inputs = {f"input{index}": step.ref for index, step in enumerate(upstream)}
    return Step(
        stage=SERVE,
        config=NoteConfig(text=text, **config),
        label=text,
        inputs={"checkpoint": checkpoint.ref, **inputs},
        after=tuple(step.ref for step in after),
        family=family,
        resources=resources,
        num_documents=1,
    )
