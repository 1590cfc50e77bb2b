"""The line below the display: what it says of the time left is what it knows."""

from pathlib import Path

import pytest

from pipeline.planning.plan import Plan
from pipeline.running.batches import batches
from pipeline.running.progress import Progress
from pipeline.running.schedule import Capacity
from pipeline.running.time_left import TimeLeft
from pipeline.store.ledger import Ledger
from pipeline.store.store import open_storage
from tests.pipeline.fakes import note, serving


def test_no_time_is_promised_while_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, plan = Ledger(open_storage(tmp_path)), Plan("sweep")
    checkpoint = note("weights")
    steps = [checkpoint, serving("a", checkpoint), note("b", checkpoint)]
    for step in steps:
        plan.add(step)
    work = batches(step.expecting(60.0) for step in steps)
    progress = Progress(plan, work, TimeLeft(work, [0.0] * len(work), Capacity(lanes=True)), ledger, "run")
    for step in steps[:2]:
        ledger.started(step.ref, "run", None)
        ledger.succeeded(step.ref, "run", 1.0)
    ledger.started(steps[2].ref, "run", None, "a node")
    progress.render()
    assert "min left" in progress.summary()
    ledger.forgive([steps[2].ref], "run", set())
    progress.render()
    assert "min left" in progress.summary(), "a moment between two steps is nothing to tell"
    monkeypatch.setattr("pipeline.running.progress.IDLE_S", 0.0)
    progress.render()
    assert "min left" not in progress.summary()
    assert progress.summary().endswith("nothing is running")
