"""What modes leave behind: those that only look leave no record, and in an empty directory nothing at all."""

from pathlib import Path

import pytest
from rich.console import Console

from pipeline.context import PlannedSweep
from pipeline.modes import MODES
from pipeline.results import record
from pipeline.results.mlflow_mirror import Mirror
from pipeline.store.store import Store
from tests.pipeline.planning.test_plan import make_plan, resolve, trials_of

READING = sorted(MODES.keys() - {"run", "resubmit"})


def sweep_in(directory: Path, *cli: str) -> PlannedSweep:
    trials = trials_of("+sweep=smoke", *cli)
    plan = make_plan("smoke", trials, resolve(trials, None))
    return PlannedSweep(lambda: plan, trials[0].config, Store(directory / "store"), Console(quiet=True))


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
