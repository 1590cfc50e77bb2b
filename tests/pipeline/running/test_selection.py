"""Which missing steps a run takes, and what GPU time it may spend."""

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FailureClass, UserError
from pipeline.planning.plan import Plan
from pipeline.running.batches import Batch
from pipeline.running.control import GpuMeter, Limit, budgeted
from pipeline.running.progress import Progress
from pipeline.running.schedule import Capacity
from pipeline.running.selection import chosen, failed, with_needs
from pipeline.running.time_left import TimeLeft
from pipeline.steps.step import Resources, Step
from pipeline.store.ledger import Failure, Ledger
from pipeline.store.store import open_storage
from tests.pipeline.fakes import note
from tests.pipeline.planning.test_plan import planned

ALL: Mapping[str, str | None] = {"class": None, "step": None, "export": None, "from": None}


@pytest.fixture
def smoke(tmp_path: Path) -> Plan:
    return planned(tmp_path, "+sweep=smoke")


def described(steps: list[Step]) -> set[str]:
    return {f"{step.stage.name} {step.trial}" for step in steps}


def test_only_takes_a_trial_with_what_it_needs(smoke: Plan) -> None:
    taken = chosen(smoke, list(smoke.steps.values()), ["*/w8a8_fp"])
    assert described(taken) == {
        "fetch_model smollm2_135m/bf16",
        "answer smollm2_135m/bf16",  # the comparison is with the base
        "score smollm2_135m/bf16",
        "quantize smollm2_135m/w8a8_fp",
        "observe smollm2_135m/w8a8_fp",
        "gate smollm2_135m/w8a8_fp",
        "answer smollm2_135m/w8a8_fp",
        "score smollm2_135m/w8a8_fp",
        "compare smollm2_135m/w8a8_fp",
    }


def test_only_narrows_trials_and_tasks_together(smoke: Plan) -> None:
    taken = chosen(smoke, list(smoke.steps.values()), ["*/bf16", "tab*"])
    assert described(taken) == {f"{stage} smollm2_135m/bf16" for stage in ("fetch_model", "answer", "score", "compare")}
    assert {step.config.task for step in taken if step.stage.name == "answer"} == {"tabular_iris", "tabular_wine"}


def test_only_refuses_a_name_that_is_not_there(smoke: Plan) -> None:
    with pytest.raises(UserError, match=r"only=\*/w4a4: no trial or task"):
        chosen(smoke, list(smoke.steps.values()), ["*/w4a4"])


def test_failed_steps_are_taken_by_class_with_those_skipped_because_of_them() -> None:
    first, other = note("first"), note("other")
    behind, apart = note("behind", first), note("apart")
    missing = [first, other, behind, apart]
    failures = {
        first.ref: _failure(FailureClass.oom),
        other.ref: _failure(FailureClass.data),
        behind.ref: _failure(FailureClass.upstream),
    }
    assert failed(missing, failures, ALL) == [first, other, behind]
    assert failed(missing, failures, {**ALL, "class": "oom"}) == [first, behind]
    assert failed(missing, failures, {**ALL, "step": other.ref.short}) == [other]
    with pytest.raises(UserError, match=r"failures\.class=ooom: there are"):
        failed(missing, failures, {**ALL, "class": "ooom"})
    with pytest.raises(UserError, match="no such step failed"):
        failed(missing, failures, {**ALL, "step": "note-000"})


@given(st.data())
def test_needs_are_closed_and_in_order(data: st.DataObject) -> None:
    steps: list[Step] = []
    for index in range(data.draw(st.integers(1, 8))):
        upstream = data.draw(st.lists(st.sampled_from(steps), unique_by=lambda step: step.ref)) if steps else []
        steps.append(note(f"{index}", *upstream))
    wanted = data.draw(st.sets(st.sampled_from([step.ref for step in steps])))
    taken = with_needs(steps, wanted)
    refs = [step.ref for step in taken]
    assert wanted <= set(refs)
    assert all(ref in refs for step in taken for ref in step.upstream)
    assert refs == [step.ref for step in steps if step.ref in refs]


def test_gpu_time_is_summed_over_what_is_running_and_what_it_will_take() -> None:
    two, one = (note(name, resources=Resources(num_gpus=number)) for name, number in (("two", 2), ("one", 1)))
    meter = GpuMeter()
    assert meter.sample([two], 0) == 0
    assert meter.sample([two, note("cpu only")], 10) == 20
    assert meter.sample([one], 20) == 30 + 20  # `one` held its GPU in the last interval; a step of 20 s is expected
    assert meter.sample([one], 25) == 35 + 15
    assert meter.sample([], 30) == 35


def test_dollars_are_counted_by_the_same_meter() -> None:
    dear, cheap = (note(name, resources=Resources(num_gpus=1)) for name in ("dear", "cheap"))
    meter = GpuMeter(lambda step: 3.29 if step is dear else 0.8)
    assert meter.sample([dear, cheap], 0) == 0
    assert meter.sample([dear, cheap], 10) == pytest.approx(10 * (3.29 + 0.8))
    assert meter.sample([cheap], 20) == pytest.approx(10 * (3.29 + 0.8) + 10 * 0.8)


def test_the_limit_that_is_reached_first_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.running.control.SAMPLE_EVERY_S", 0.01)
    reasons, stopped = list[str](), threading.Event()

    def request_stop(reason: str) -> None:
        reasons.append(reason)
        stopped.set()

    limits = [Limit("budget.gpu_hours=9", 9), Limit("budget.usd=0.0001", 1e-7, lambda step: 1.0)]
    with budgeted(limits, lambda: [note("a", resources=Resources(num_gpus=1))], request_stop):
        assert stopped.wait(5)
    assert reasons == ["budget.usd=0.0001 is used up"]


def _failure(failure_class: FailureClass) -> Failure:
    return Failure(failure_class, "why", None, 1)


def test_what_was_skipped_is_taken_after_its_cause_was_mended() -> None:
    """A resubmission that is stopped once the failed step is made must not lose those behind it."""
    mended, behind = note("mended"), note("behind", note("mended"))
    assert failed([behind], {behind.ref: _failure(FailureClass.upstream)}, ALL) == [behind]
    assert mended.ref in behind.upstream


def test_a_step_between_two_attempts_is_not_done(tmp_path: Path) -> None:
    """Its second attempt costs GPU time like the first."""
    ledger, step, behind = Ledger(open_storage(tmp_path)), note("a"), note("b")
    plan = Plan("test", {}, {step.ref: step, behind.ref: behind})
    work = [Batch((step, behind), ())]
    progress = Progress(plan, work, TimeLeft(work, [0.0], Capacity()), ledger, "run")
    ledger.started(step.ref, "run", None)
    assert progress.running_steps() == [step]
    ledger.failed(step.ref, "run", FailureClass.engine, "died")
    assert progress.running_steps() == []
    ledger.started(step.ref, "run", None)
    assert progress.running_steps() == [step]
    ledger.failed(step.ref, "run", FailureClass.engine, "died")
    ledger.started(behind.ref, "run", None)
    assert progress.running_steps() == [behind]


def test_a_budget_outlives_a_store_that_cannot_be_read_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.running.control.SAMPLE_EVERY_S", 0.01)
    reads = iter([OSError(5, "Input/output error")])
    stopped = threading.Event()

    def running() -> list[Step]:
        if trouble := next(reads, None):
            raise trouble
        return [note("a", resources=Resources(num_gpus=8))]

    with budgeted([Limit("budget.gpu_hours", 1e-6)], running, lambda reason: stopped.set()):
        assert stopped.wait(5)
