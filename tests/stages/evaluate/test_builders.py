"""Processes that build shards beside an engine: what goes wrong in them, and that none is left."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from stages.errors import DataError
from stages.evaluate import builders
from stages.evaluate.builders import Apart
from stages.evaluate.config import EngineConfig


class Called:
    """In the place of tasks: what is asked for is called."""

    def built(self, config: Callable[[], Any], data: Any) -> Any:
        return config()


def begin(*_: Any) -> None:
    builders._tasks = Called()  # type: ignore[assignment]


class OddError(Exception):
    """Pickled with one argument, of the two that it needs."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")


def odd() -> None:
    raise OddError(3, "no answer")


def plain() -> None:
    raise DataError("no such split")


def endless() -> None:
    time.sleep(600)


def die() -> None:
    os._exit(1)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Apart]:
    monkeypatch.setattr(builders, "_begin", begin)
    monkeypatch.setattr(builders, "task_key", lambda config, data: "one")
    opened = Apart(tmp_path, EngineConfig(), tmp_path)
    yield opened
    opened.close()


def submit(apart: Apart, what: Callable[[], Any]) -> Any:
    return apart.submit(what, {})  # type: ignore[arg-type]


def test_an_error_arrives_as_what_it_is_and_costs_no_other_shard(apart: Apart) -> None:
    with pytest.raises(RuntimeError, match="OddError: row 3: no answer"):
        submit(apart, odd).result()
    with pytest.raises(DataError, match="no such split"):
        submit(apart, plain).result()


def test_a_process_that_was_dead_before_a_shard_was_given_to_it_is_told_with_the_shard(apart: Apart) -> None:
    with pytest.raises(BrokenExecutor):
        submit(apart, die).result()
    shard = submit(apart, plain)
    assert isinstance(shard.exception(), BrokenExecutor)


def test_closing_waits_for_no_shard_and_leaves_no_process(apart: Apart) -> None:
    shards = [submit(apart, endless) for _ in range(4)]
    children = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    apart.close()
    assert children
    assert not any(child.is_running() for child in children)
    assert all(shard.done() for shard in shards)
