"""The time left: what was expected, corrected by what this run has seen, and never a promise about the unknown."""

from pipeline.running.batches import batches
from pipeline.running.schedule import Capacity
from pipeline.running.time_left import TimeLeft
from pipeline.steps.step import Step, StepRef
from tests.pipeline.fakes import note

STEPS = [note(text) for text in "abcd"]


def time_left(*expected_s: float | None) -> tuple[TimeLeft, dict[int, list[Step]]]:
    work = batches(step.expecting(each) for step, each in zip(STEPS, expected_s, strict=True))
    left = TimeLeft(work, [0.0] * len(work), Capacity(lanes=True))
    return left, {index: list(batch.steps) for index, batch in enumerate(work)}


def seconds(left: TimeLeft, waiting: dict[int, list[Step]], running_s: dict[StepRef, float] | None = None) -> float:
    found = left.left(waiting, running_s or {})
    assert found is not None
    assert not found.is_floor
    return found.seconds


def test_before_anything_ran_it_is_what_was_expected() -> None:
    left, waiting = time_left(10, 20, 30, 40)
    assert seconds(left, waiting) == 100
    assert seconds(left, waiting, {STEPS[0].ref: 4.0}) == 96
    assert seconds(left, waiting, {STEPS[0].ref: 400.0}) == 90, "what takes longer is about to end"


def test_a_run_that_is_slower_than_expected_corrects_what_is_left_and_does_not_jump() -> None:
    left, waiting = time_left(10, 20, 30, 40)
    for index, took_s in enumerate((20.0, 40.0)):
        left.note(waiting[index].pop(), took_s)
        assert seconds(left, waiting) == 2 * sum((10, 20, 30, 40)[index + 1 :])


def test_of_steps_that_nobody_expected_those_that_ended_tell() -> None:
    left, waiting = time_left(None, None, None, None)
    assert left.left(waiting, {}) is None
    left.note(waiting[0].pop(), 7.0)
    assert seconds(left, waiting) == 21


def test_where_something_is_not_known_it_is_a_floor() -> None:
    left, waiting = time_left(10, None, 30, 40)
    assert left.left(waiting, {}) == (80, True)
