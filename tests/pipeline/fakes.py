"""Stages for tests of the engine: they only write what they are told, or fail as they are told."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.step import Resources, Stage, Step, StepRef
from stages.errors import DataError, EngineError
from stages.fields import execution, identity

VERSION = 3


@dataclass(kw_only=True, slots=True)
class NoteConfig:
    """``behaviour``: write, data_error, engine_error, bug, die, die_once, slow."""

    text: str = identity()
    behaviour: str = execution("write")
    scratch: str = execution("")  # a directory for marks that outlive a process


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


def _behave(config: NoteConfig) -> None:
    match config.behaviour:
        case "data_error":
            raise DataError("the data is odd: look at it")
        case "engine_error":
            raise EngineError("the engine died")
        case "bug":
            raise KeyError("nobody thought of this")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die_once":
            mark = Path(config.scratch) / f"died-{config.text}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "slow":
            time.sleep(0.5)


def session_key(config: NoteConfig) -> str:
    return "one"


@contextmanager
def open_session(config: NoteConfig, inputs: Mapping[str, Path]) -> Iterator[list[str]]:
    """A list of what was served, and a mark for each opening and closing."""
    with (Path(config.scratch) / "sessions").open("a") as marks:
        marks.write("open\n")
    if config.behaviour == "no_session":
        raise EngineError("the engine did not start")
    yield []
    with (Path(config.scratch) / "sessions").open("a") as marks:
        marks.write("close\n")


def serve_note(config: NoteConfig, inputs: Mapping[str, Path], out: Path, session: list[str]) -> Mapping[str, float]:
    """Like ``write_note``, in a session."""
    session.append(config.text)
    write_note(config, inputs, out)
    return {"served": float(len(session))}


NOTE = Stage("note", "tests.pipeline.fakes", "write_note")
SERVE = Stage("serve", "tests.pipeline.fakes", "serve_note", sessions=True)


def note(text: str, *upstream: Step, after: tuple[Step, ...] = (), **config: str) -> Step:
    """A step that writes ``text`` after what its inputs wrote."""
    inputs: dict[str, StepRef] = {f"input{index}": step.ref for index, step in enumerate(upstream)}
    return Step(
        stage=NOTE,
        config=NoteConfig(text=text, **config),
        label=text,
        inputs=inputs,
        after=tuple(step.ref for step in after),
        resources=Resources(num_cpus=1),
    )


def serving(text: str, checkpoint: Step, **config: str) -> Step:
    """A step of a stage with sessions."""
    return Step(
        stage=SERVE,
        config=NoteConfig(text=text, **config),
        label=text,
        inputs={"checkpoint": checkpoint.ref},
        num_documents=1,
    )
