"""What is told on a terminal: equal failures once, names as they are, and no secrets."""

import io

import pytest
from rich.console import Console

from pipeline.errors import FailureClass
from pipeline.planning.estimate import Grounds
from pipeline.planning.plan import Plan
from pipeline.results import terminal
from pipeline.results.console import say
from pipeline.results.failures_shown import Told, say_briefly
from pipeline.results.plan_summary import PlanSummary, TrialSummary
from pipeline.running.expectation import Expectation
from pipeline.running.schedule import Capacity
from pipeline.store.ledger import Failure
from stages.report.artifact import Summary
from tests.pipeline.fakes import note


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def told(index: int) -> Told:
    message = f"shard {index}00-{index + 1}00: the engine died at 0x7f{index:06x}, see evaluate-{index:012x}"
    return Told("failed (engine)", message, f"evaluate-{index:012x} trial", f"/logs/{index}.log")


def test_what_failed_alike_is_told_once_with_its_number(console: Console) -> None:
    other = Told("failed (engine)", "the engine did not start", "evaluate-x trial")
    say_briefly(console, [*map(told, range(60)), other, *map(told, range(60, 124))], 10)
    lines = printed(console).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "failed (engine) ×124 evaluate-000000000000 trial and 123 more",
        "failed (engine) evaluate-x trial",
        "log",
    ]


def test_only_so_many_kinds_are_told_and_the_steps_of_the_others_are_counted(console: Console) -> None:
    failures = [Told("failed (data)", f"no {letter}", f"step {letter}") for letter in "aabbbcc"]
    say_briefly(console, failures, 2)
    assert "and 2 more steps without a result" in printed(console)


def test_status_tells_each_kind_once_with_some_of_its_steps_and_counts_all(console: Console) -> None:
    steps = [note(f"text {index}") for index in range(124)]
    plan = Plan("test", {}, {step.ref: step for step in steps})
    failures = {
        step.ref: Failure(FailureClass.data, f"part {index} is odd: look at it", f"/logs/{index}.log", 1)
        for index, step in enumerate(steps)
    }
    terminal.status(console, plan, set(plan.steps), failures, set())
    text = printed(console)
    assert "data ×124 part 0 is odd: look at it\n" in text
    assert text.count("look at it") == 1
    assert "log: /logs/0.log" in text
    assert "and 121 more: failures.export=FILE lists all" in text
    assert "by class: data 124" in text


@pytest.mark.parametrize("name", ["[red]m[/]/bf16", "[/b]/bf16", "m/leaves=[a]", "m\\", "<b>&amp;"])
def test_a_name_that_looks_like_markup_is_shown_as_it_is(console: Console, name: str) -> None:
    trial = TrialSummary(name, None, 0, None, 1, 1)
    expected = Expectation(Plan(name), [], [], Capacity(), Grounds())
    terminal.plan(console, PlanSummary("f" * 64, [trial], [], 1, 1, 1, 1, {name: [name]}, expected, 0))
    step = note(name)
    terminal.reasons(console, step, [name])
    terminal.replaced(console, name, 1)
    text = printed(console)
    assert text.count(name) >= 4
    assert f"{name}" in text.splitlines()[1]


def test_a_line_leaves_secrets_out(console: Console) -> None:
    say(console, "results go to s3://KEY:secret@bucket/prefix")
    assert printed(console) == "results go to s3://***@bucket/prefix\n"


def test_what_to_ship_is_said_of_one_model_in_a_sentence_and_of_many_not_of_all() -> None:
    headline = "1 of 9 formats may be shipped, 8 not decided"
    one = Summary(title="t", rows=[], sentences={"m": "Ship w8a8_fp."}, headline=headline)
    assert list(terminal.what_to_ship(one)) == ["Ship w8a8_fp."]
    many = Summary(title="t", rows=[], sentences={f"m{n}": "Ship w8a8_fp." for n in range(9)}, headline=headline)
    assert list(terminal.what_to_ship(many)) == [
        f"{headline}.",
        *(f"m{n}: Ship w8a8_fp." for n in range(6)),
        "3 models more are in the report",
    ]
