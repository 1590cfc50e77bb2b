"""What a store remembers of a sweep: its latest plan, and the environment it was begun in."""

from pathlib import Path

from pipeline.planning.plan import Plan
from pipeline.results import record
from pipeline.results.environment import changes
from pipeline.steps.step import Step
from pipeline.store.manifest import environment_of
from pipeline.store.store import Store
from tests.pipeline.fakes import note

COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_a_plan_that_takes_another_one_s_name_knows_what_that_leaves_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (note("kept"), note("left")):
        with store.draft(step) as draft:
            draft.publish({}, {})
    before, after = _plan(note("kept"), note("left"), note("never made")), _plan(note("kept"), note("new"))
    assert record.num_replaced(store, before) == 0
    record.save(store, before, None)
    assert record.num_replaced(store, before) == 0
    assert record.num_replaced(store, after) == 1
    record.save(store, after, None)
    assert record.num_replaced(store, after) == 0


def test_uncommitted_changes_are_another_environment() -> None:
    clean, changed = (environment_of({"provenance": {"git": {"commit": COMMIT, "dirty": dirty}}}) for dirty in (0, 1))
    assert changes(clean, changed) == ["git commit: 0123456789ab -> 0123456789ab with changes"]
    assert changes(clean, clean) == []
    assert environment_of({}) == {"packages": None, "git": None}


def _plan(*steps: Step) -> Plan:
    return Plan("test", {}, {step.ref: step for step in steps})
