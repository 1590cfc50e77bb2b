"""Batches that compute on GPUs, without Ray: each in a process of its own, which ends with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from pipeline.config.execution import ClusterConfig, RunnerKind
from pipeline.errors import FailureClass
from pipeline.running.batches import batches
from pipeline.running.outcome import RunContext, Status
from pipeline.running.runner import Outcomes, make_runner
from pipeline.steps.step import Resources, Step
from pipeline.store.store import Address, Store
from tests.pipeline.fakes import NoteConfig, note, serving
from tests.sweeping import ROOT, wait_for

pytestmark = pytest.mark.dear
ONE_GPU = Resources(num_cpus=1, num_gpus=1)
SCRIPT = """
import signal
from pathlib import Path
from tests.pipeline.running.test_apart import ONE_GPU, note, run

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    run(Path("store"), [note("slow", behaviour="hang", scratch={scratch!r}, resources=ONE_GPU)])
"""


def run(root: Path, steps: Sequence[Step], timeout_s: Mapping[str, float] | None = None) -> Outcomes:
    context = RunContext(Address(root), "run", max_attempts=2, timeout_s=timeout_s or {})
    runner = make_runner(ClusterConfig(runner=RunnerKind.inline))
    return runner.run(batches(Store(root).missing(steps)), context, lambda _: None)


def pids(scratch: Path) -> list[int]:
    return [int(line) for line in (scratch / "pids").read_text().split()]


def workers(pid: int) -> list[psutil.Process]:
    return [each for each in psutil.Process(pid).children() if "spawn_main" in " ".join(each.cmdline())]


def test_each_batch_on_a_gpu_has_a_process_that_ends_with_it(tmp_path: Path) -> None:
    first = note("a", behaviour="tell_pid", scratch=str(tmp_path), resources=ONE_GPU)
    second = note("b", first, behaviour="tell_pid", scratch=str(tmp_path), resources=ONE_GPU)
    without = note("c", second, behaviour="tell_pid", scratch=str(tmp_path))
    outcomes = run(tmp_path / "store", [first, second, without])
    assert all(outcome.status is Status.succeeded for outcome in outcomes.values())
    found = pids(tmp_path)
    assert len(set(found)) == 3
    assert found[2] == os.getpid(), "what needs no GPU needs no process"
    assert not any(map(psutil.pid_exists, found[:2]))


def test_what_needs_no_gpu_runs_beside_what_does_and_the_next_process_starts_ahead(tmp_path: Path) -> None:
    scratch = str(tmp_path)
    first = note("a", behaviour="await mark-b", scratch=scratch, resources=ONE_GPU)
    beside = note("b", behaviour="mark", scratch=scratch)
    second = note("c", first, behaviour="await prepared-d", scratch=scratch, resources=ONE_GPU)
    third = note("d", second, scratch=scratch, resources=ONE_GPU)
    outcomes = run(tmp_path / "store", [first, second, third, beside])
    assert {outcome.message for outcome in outcomes.values()} == {""}, "none waited in vain for another"
    assert not workers(os.getpid()), "nor is a process left that was started for nothing"


def test_nothing_runs_beside_what_must_be_alone(tmp_path: Path) -> None:
    scratch, alone = str(tmp_path), Resources(num_cpus=1, num_gpus=1, is_alone=True)
    first = note("a", behaviour="slow", scratch=scratch, resources=alone)
    second = note("b", first, scratch=scratch, resources=ONE_GPU)
    beside = note("c", behaviour="slow", scratch=scratch)
    run(tmp_path / "store", [first, second, beside])
    store = Store(tmp_path / "store")
    times = [json.loads((store.path(each.ref) / "manifest.json").read_text())["provenance"] for each in (first, beside)]
    assert times[0]["started"] >= times[1]["ended"] or times[1]["started"] >= times[0]["ended"]
    assert (tmp_path / "prepared-b").stat().st_mtime > times[0]["ended"]


def test_a_process_that_dies_at_its_imports_is_not_started_for_every_step(tmp_path: Path) -> None:
    steps = [
        serving(text, note("model"), behaviour="die_at_imports", scratch=str(tmp_path), resources=ONE_GPU)
        for text in "abcdef"
    ]
    outcomes = run(tmp_path / "store", [note("model"), *steps])
    assert {outcomes[step.ref].status for step in steps} == {Status.not_run}
    assert "died at its imports 3 times" in outcomes[steps[0].ref].message
    assert len(pids(tmp_path)) == 3, "twice is max_attempts"


def test_a_stop_starts_no_more_processes(tmp_path: Path) -> None:
    scratch = str(tmp_path)
    steps = [note(text, behaviour="mark", scratch=scratch, resources=ONE_GPU) for text in "ab"]
    Store(tmp_path / "store").ledger.request_stop("run", "enough")
    outcomes = run(tmp_path / "store", steps)
    assert {(each.status, each.message) for each in outcomes.values()} == {(Status.not_run, "enough")}
    assert not list(tmp_path.glob("prepared-*"))


def test_a_process_that_dies_is_replaced_and_one_that_hangs_is_ended(tmp_path: Path) -> None:
    scratch = str(tmp_path)
    once = note("once", behaviour="die_once", scratch=scratch, resources=ONE_GPU)
    always = note("always", behaviour="die", resources=ONE_GPU)
    hang = note("hang", behaviour="hang", scratch=scratch, resources=ONE_GPU)
    free = note("free", resources=ONE_GPU)
    outcomes = run(tmp_path / "store", [once, always, hang, free], timeout_s={"note": 2.0})
    assert [outcomes[step.ref].status for step in (once, free)] == [Status.succeeded] * 2
    classes = [outcomes[step.ref].failure_class for step in (always, hang)]
    assert classes == [FailureClass.crash, FailureClass.timeout]
    child = int((tmp_path / "child-hang").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_stays_on_a_gpu_when_the_driver_dies_or_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(scratch=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "child-slow").exists)
    (worker,) = workers(driver.pid)
    driver.send_signal(number)
    driver.wait(10)
    deadline = time.monotonic() + 10
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it still holds its GPU"
        time.sleep(0.1)


@pytest.mark.parametrize("behaviour", ["die_after_a_fork", "die_after_a_start"])
def test_what_a_dead_process_left_is_ended_and_keeps_nobody_waiting(tmp_path: Path, behaviour: str) -> None:
    """What it forked holds its end of the pipe, what it started has another parent by now."""
    step, started = note("a", behaviour=behaviour, scratch=str(tmp_path), resources=ONE_GPU), time.monotonic()
    assert run(tmp_path / "store", [step])[step.ref].failure_class is FailureClass.crash
    assert time.monotonic() - started < 60
    left = [psutil.Process(pid) for pid in pids(tmp_path) if psutil.pid_exists(pid)]
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in left)


def test_what_an_engine_that_failed_left_behind_is_in_nobody_s_way(tmp_path: Path) -> None:
    """The next attempt at its step, and the next step, have a process of their own."""
    checkpoint, behaviours = note("weights"), {"a": "write", "b": "engine_error", "c": "write"}
    steps = [
        serving(text, checkpoint, behaviour=how, scratch=str(tmp_path), resources=ONE_GPU)
        for text, how in behaviours.items()
    ]
    outcomes = run(tmp_path / "store", [checkpoint, *steps])
    assert [outcomes[step.ref].status for step in steps] == [Status.succeeded, Status.failed, Status.succeeded]
    ledger = Store(tmp_path / "store").ledger
    tried = [event["pid"] for step in steps for event in ledger.events(step.ref) if event["event"] == "started"]
    assert len(tried) == 4
    assert tried[0] == tried[1] and len(set(tried[1:])) == 3


def test_a_session_that_never_opens_is_not_tried_for_every_step_though_each_try_has_a_process(tmp_path: Path) -> None:
    checkpoint, scratch = note("model"), str(tmp_path)
    shards = [
        serving(f"s{index}", checkpoint, behaviour="no_session", scratch=scratch, resources=ONE_GPU)
        for index in range(6)
    ]
    outcomes = run(tmp_path / "store", [checkpoint, *shards])
    assert (tmp_path / "sessions").read_text().split() == ["open"] * 2
    assert {outcomes[shard.ref].failure_class for shard in shards} == {FailureClass.engine}
    assert "not tried" in outcomes[shards[-1].ref].message
    assert "the engine did not start" in outcomes[shards[-1].ref].message


class Unreadable:
    """What no other process can read back."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


class UnreadableConfig(Unreadable, NoteConfig):
    """A config of that kind."""


def test_a_process_that_cannot_start_is_not_tried_for_ever(tmp_path: Path) -> None:
    step = note("a", resources=ONE_GPU)
    object.__setattr__(step, "config", UnreadableConfig(text="a"))
    outcome = run(tmp_path / "store", [step])[step.ref]
    assert outcome.status is Status.not_run
    assert "did not start" in outcome.message


def test_a_batch_that_cannot_be_handed_over_says_why(tmp_path: Path) -> None:
    step = note("a", resources=ONE_GPU)
    object.__setattr__(step, "trial", Unreadable())
    outcome = run(tmp_path / "store", [step])[step.ref]
    assert outcome.status is Status.not_run
    assert "no number" in outcome.message
