"""What a task's code opens while it is loaded: what nobody digested is refused, since it could change unseen."""

import os
import sys
import sysconfig
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from stages.errors import DataError
from stages.evaluate.installed import installed_places

_SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/lib")
_CLOCK_TICK_S = 0.02  # a file's time is that of the kernel's last tick
_KEPT = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "NLTK_DATA", "XDG_CACHE_HOME")


@dataclass(slots=True)
class _Watch:
    """The files that one thread opens to read, in order."""

    thread: int = field(default_factory=threading.get_ident)
    begun_s: float = field(default_factory=time.time)
    read: dict[str, None] = field(default_factory=dict)

    def note(self, name: str, mode: str | None, flags: int) -> None:
        if not (set(mode or "") & set("wxa") or flags & (os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
            self.read[name] = None


_watches: list[_Watch] = []


@contextmanager
def only_known_files(task: str, known: Sequence[Path]) -> Iterator[None]:
    """Raise DataError at the end if this thread has read a file below none of ``known``, nor of any package."""
    _add_hook()
    _watches.append(watch := _Watch())
    try:
        yield
    finally:
        _watches.remove(watch)
    places = _packages().union(os.path.realpath(place) for place in known)
    for name in watch.read:
        if not _is_below(_source(os.path.realpath(name)), places) and _was_there(name, watch.begun_s):
            raise DataError(
                f"task {task} reads {name}, which the plan did not know of, so a change of it would go unseen: put it "
                "into the folder of the task's YAML, or name it in full in the task's dataset_kwargs"
            )


@cache
def _add_hook() -> None:
    """Once a process: a hook of Python's stays for good, and looks at nothing without a watch."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _watches and event == "open":
            name, mode, flags = arguments
            if isinstance(name, str | bytes):
                for watch in [each for each in _watches if each.thread == threading.get_ident()]:
                    watch.note(str(Path(os.fsdecode(name)).absolute()), mode, flags)

    sys.addaudithook(hook)


def _was_there(name: str, time_s: float) -> bool:
    """Not what the task has written itself, under whatever name, nor what NLTK's packages unpack."""
    return (
        "nltk_data" not in Path(name).parts
        and Path(name).is_file()
        and Path(name).stat().st_ctime < time_s - _CLOCK_TICK_S
    )


def _source(name: str) -> str:
    """Of a compiled module the file that it was made of."""
    path = Path(name)
    if path.parent.name == "__pycache__" and path.suffix == ".pyc":
        return str(path.parents[1] / f"{path.name.partition('.')[0]}.py")
    return name


@cache
def _packages() -> frozenset[str]:
    """Where programs are, and what they keep for themselves."""
    installed = [*installed_places(), *sysconfig.get_paths().values(), sys.prefix, sys.base_prefix]
    kept = [os.environ.get(name) for name in _KEPT]
    hidden = [str(path) for path in Path.home().glob(".*")]
    places = [*_SYSTEM, *installed, *(place for place in kept if place), *hidden, str(Path.home() / "nltk_data")]
    return frozenset(os.path.realpath(place) for place in places)


def _is_below(name: str, places: Collection[str]) -> bool:
    return any(str(place) in places for place in (name, *Path(name).parents))
