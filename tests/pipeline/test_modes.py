"""What modes leave behind: those that only look leave no record, and in an empty directory nothing at all."""

import functools
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import driver
from pipeline.config.schema import Config
from pipeline.context import PlannedSweep
from pipeline.errors import UserError
from pipeline.modes import MODES
from pipeline.planning.facts import resolve
from pipeline.planning.make_plan import make_plan
from pipeline.planning.plan import Plan
from pipeline.results import record
from pipeline.results.mlflow_mirror import Mirror
from pipeline.running.outcome import Outcome, Status
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


def test_a_report_that_fails_leaves_the_sweep_the_one_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, last = sweep_in(tmp_path), next(iter(sweep_in(tmp_path).plan.steps))
    record.save(sweep.store, sweep.plan, last)
    failed = Outcome(last, Status.failed, message="no room")
    monkeypatch.setattr(driver, "run_batch", lambda *_: [failed])
    with pytest.raises(UserError, match=r"the report could not be written \(no room\)"):
        driver.publish_report(sweep, is_recorded=True)
    found = record.read(sweep.store, sweep.plan.name)
    assert found is not None
    assert found.report == last


@pytest.mark.parametrize("is_away", [False, True])
def test_a_review_is_offered_only_of_what_was_written(
    is_away: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        if is_away:
            raise ConnectionError("nobody answers")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(Mirror, "write", write)
    monkeypatch.setattr(driver, "_make", lambda *_: {})
    sweep, printed = sweep_in(tmp_path), io.StringIO()
    MODES["run"](replace(sweep, console=Console(file=printed, width=200)))
    assert "report: " in printed.getvalue()
    assert ("review: " in printed.getvalue()) is not is_away
