"""What modes leave behind: those that only look leave no record, and in an empty directory nothing at all."""

import functools
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config.schema import Config
from pipeline.context import PlannedSweep
from pipeline.modes import MODES
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from pipeline.planning.plan import Plan
from pipeline.results import record
from pipeline.results.mlflow_mirror import Mirror
from pipeline.store.store import Store
from tests.pipeline.planning.test_plan import trials_of

READING = sorted(MODES.keys() - {"run", "resubmit"})


@functools.cache
def planned(*cli: str) -> tuple[Plan, Config]:
    trials = trials_of("+sweep=smoke", *cli)
    return make_plan("smoke", trials, resolve(trials, None)), trials[0].config


def sweep_in(directory: Path, *cli: str) -> PlannedSweep:
    plan, config = planned(*cli)
    return PlannedSweep(lambda: plan, config, Store(directory / "store"), Console(quiet=True))


@pytest.mark.parametrize("mode", READING)
def test_a_mode_that_reads_leaves_the_sweep_s_record_as_it_is(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = sweep_in(tmp_path)
    record.save(ran.store, ran.plan, next(iter(ran.plan.steps)), {"packages": {"vllm": "1"}})
    [file] = (tmp_path / "store" / "sweeps").iterdir()
    before = file.read_bytes()
    monkeypatch.setattr(Mirror, "write", lambda *_: None)
    assert MODES[mode](sweep_in(tmp_path, "tasks.mathador.limit=3")) == 0
    assert [each.read_bytes() for each in file.parent.iterdir()] == [before]
