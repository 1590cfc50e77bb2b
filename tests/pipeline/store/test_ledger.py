"""The ledger: what happened to a step, told apart by run."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FailureClass
from pipeline.store.ledger import Ledger
from pipeline.store.store import open_storage
from tests.pipeline.fakes import note

REF = note("a").ref


def test_an_attempt_that_never_ended_is_a_death(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "run", "where the log is")
    assert ledger.history(REF, "run").num_deaths == 1
    failure = ledger.last_failure(REF)
    assert failure is not None
    assert failure.failure_class is FailureClass.crash
    assert failure.log == "where the log is"


def test_deaths_of_another_run_do_not_count(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "killed by its user", None)
    assert ledger.history(REF, "run").num_deaths == 0


def test_an_attempt_that_a_lost_node_ended_says_nothing_against_the_step(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "run", None, "lost node")
    assert ledger.history(REF, "run").deaths == ("lost node",)
    ledger.forgive([REF], "run", {"another node", "lost node"})
    assert ledger.last_failure(REF) is not None
    ledger.forgive([REF], "run", {"another node"})
    ledger.forgive([REF], "run", {"another node"})
    assert ledger.last_failure(REF) is None
    assert (ledger.history(REF, "run").num_started, ledger.history(REF, "run").deaths) == (0, ())
    ledger.started(REF, "run", None, "another node")
    assert ledger.history(REF, "run").deaths == ("another node",)
    ledger.lose("run")
    assert ledger.last_failure(REF) is None


def test_what_happened_to_a_run_is_told_of_its_sweep_s_latest(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    for sweep, run_id, text in [("a", "1", "old"), ("a", "2", "a node was lost"), ("b", "3", "x"), ("a", "2", "back")]:
        ledger.tell(sweep, run_id, text)
    assert [text for _, text in ledger.told("a")] == ["a node was lost", "back"]
    assert ledger.told("another") == []


@given(st.lists(st.sampled_from(["succeeded", "failed", "died"]), max_size=6))
def test_deaths_are_the_attempts_without_an_end(tmp_path_factory, ends: list[str]) -> None:  # type: ignore[no-untyped-def]
    ledger = Ledger(open_storage(tmp_path_factory.mktemp("ledger")))
    for end in ends:
        ledger.started(REF, "run", None)
        if end == "succeeded":
            ledger.succeeded(REF, "run", 1.0)
        if end == "failed":
            ledger.failed(REF, "run", FailureClass.oom, "no memory")
    assert ledger.history(REF, "run").num_deaths == ends.count("died")


def test_a_failure_keeps_its_class_and_message(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "run", None)
    ledger.failed(REF, "run", FailureClass.oom, "no memory left")
    assert ledger.history(REF, "run").failure == (FailureClass.oom, "no memory left")
    assert ledger.history(REF, "next run").failure is None


def test_a_request_to_stop_reaches_one_run_and_keeps_its_first_reason(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    assert ledger.stop_reason("run") is None
    ledger.request_stop("run", "the user said so")
    ledger.request_stop("run", "another reason")
    assert Ledger(open_storage(tmp_path)).stop_reason("run") == "the user said so"
    assert ledger.stop_reason("other run") is None
    ledger.clear_stop("run")
    assert ledger.stop_reason("run") is None


def test_a_line_torn_by_a_kill_costs_only_itself(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "run", None)
    path = next((tmp_path / "ledger").iterdir())
    path.write_text(path.read_text() + '{"time": 1.0, "event": "succ')
    ledger.failed(REF, "run", FailureClass.data, "odd")
    assert [event["event"] for event in ledger.events(REF)] == ["started", "failed"]


def test_a_step_that_was_never_tried_has_no_failure(tmp_path: Path) -> None:
    assert Ledger(open_storage(tmp_path)).last_failure(REF) is None


def test_a_stopped_attempt_leaves_the_step_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    for _ in range(2):
        ledger.started(REF, "stopped at once", None)
        ledger.stopped(REF, "stopped at once")
    assert ledger.last_failure(REF) is None
    ledger.started(REF, "run", None)
    ledger.failed(REF, "run", FailureClass.oom, "no memory left")
    for run_id in ("run", "next run"):
        ledger.started(REF, run_id, None)
        ledger.stopped(REF, run_id)
    failure = ledger.last_failure(REF)
    assert failure is not None and failure.failure_class is FailureClass.oom, "it can still be resubmitted"


def test_an_attempt_of_a_run_that_lives_is_no_failure(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "run", None)
    with ledger.alive("run"):
        while not ledger.is_alive("run"):
            time.sleep(0.01)
        assert Ledger(open_storage(tmp_path)).last_failure(REF) is None
        assert ledger.running([note("a"), note("b")]) == {REF}
    assert ledger.running([note("a"), note("b")]) == set()
    failure = ledger.last_failure(REF)
    assert failure is not None and failure.failure_class is FailureClass.crash


def test_a_driver_that_was_silent_for_long_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "run", None)
    with ledger.alive("run"):
        while not ledger.is_alive("run"):
            time.sleep(0.01)
        monkeypatch.setattr("pipeline.store.ledger.DEAD_AFTER_S", -1)
        assert ledger.last_failure(REF) is not None


def test_a_step_whose_artifact_was_removed_did_not_fail(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "run", None)
    ledger.succeeded(REF, "run", 1.0)
    assert ledger.last_failure(REF) is None


def append(root: Path, text: str | bytes) -> None:
    path = root / "ledger" / f"{REF.short}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as stream:
        stream.write(b"\n" + (text.encode() if isinstance(text, str) else text) + b"\n")


@pytest.mark.parametrize(
    "line",
    [
        '["x"]',
        "{}",
        "null",
        '{"event": "failed", "run_id": "run", "time": 1.0}',
        '{"event": "started", "time": 1.0}',
        '{"event": "started", "run_id": "run", "time": "noon"}',
        '{"event": "started", "run_id": "run", "time": 1.0, "log": {}}',
        '{"event": "promoted", "run_id": "run", "time": 1.0}',
        b"\xff\xfe",
        '{"event": "succeeded", "messag\xc3'.encode("latin-1"),
    ],
)
def test_a_line_that_is_no_event_is_passed_over(tmp_path: Path, line: str | bytes) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "run", None)
    append(tmp_path, line)
    ledger.failed(REF, "run", FailureClass.oom, "no memory left")
    assert [event["event"] for event in ledger.events(REF)] == ["started", "failed"]
    assert ledger.history(REF, "run").failure == (FailureClass.oom, "no memory left")
    failure = ledger.last_failure(REF)
    assert failure is not None and failure.failure_class is FailureClass.oom


def test_a_class_that_this_version_does_not_know_is_a_crash_that_says_so(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    append(tmp_path, '{"event": "failed", "failure_class": "gremlins", "message": "bitten", "run_id": "r", "time": 1}')
    failure = ledger.last_failure(REF)
    assert failure is not None and failure.failure_class is FailureClass.crash
    assert (
        failure.message
        == f"ledger/{REF.short}.jsonl says it failed as 'gremlins', which this version does not know: bitten"
    )
    assert ledger.history(REF, "r").failure == (failure.failure_class, failure.message)


def test_a_message_with_line_separators_of_other_alphabets_stays_one_event(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    ledger.started(REF, "run", None)
    ledger.failed(REF, "run", FailureClass.data, "one\u2028two\x85three")
    assert ledger.history(REF, "run").failure == (FailureClass.data, "one\u2028two\x85three")


@pytest.mark.parametrize("said", ["", "noon", "nan", "inf", "9e99", "["])
def test_a_heartbeat_that_is_no_time_of_today_is_none(tmp_path: Path, said: str) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "run-r").write_text(said)
    assert not Ledger(open_storage(tmp_path)).is_alive("r")
