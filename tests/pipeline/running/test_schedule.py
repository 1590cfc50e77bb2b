"""How long batches take side by side."""

from pipeline.running.batches import batches
from pipeline.running.schedule import Capacity, makespan_s
from pipeline.steps.step import Resources, Step
from tests.pipeline.fakes import note

GPU, HALF, TWO = (Resources(num_gpus=number) for number in (1, 0.5, 2))


def takes(seconds: dict[Step, float] | list[tuple[Step, float]], capacity: Capacity) -> float:
    by_ref = {step.ref: each for step, each in (seconds.items() if isinstance(seconds, dict) else seconds)}
    work = batches(step for step, _ in (seconds.items() if isinstance(seconds, dict) else seconds))
    return makespan_s(work, [by_ref[batch.steps[0].ref] for batch in work], capacity)


def alike(number: int, resources: Resources = GPU, seconds: float = 10.0) -> list[tuple[Step, float]]:
    return [(note(f"{resources}-{index}", resources=resources), seconds) for index in range(number)]


def test_two_gpus_do_it_in_half_the_time_and_fractions_share_one() -> None:
    assert takes(alike(4), Capacity(num_gpus=1)) == 40
    assert takes(alike(4), Capacity(num_gpus=2)) == 20
    assert takes(alike(4), Capacity(num_gpus=8)) == 10
    assert takes(alike(4, HALF), Capacity(num_gpus=1)) == 20
    assert takes(alike(3, TWO), Capacity(num_gpus=3)) == 30, "two of three GPUs are held, one is idle"


def test_what_is_needed_comes_first_and_a_long_chain_before_a_short_one() -> None:
    first = note("first", resources=GPU)
    chain = note("chain", first, resources=GPU)
    assert takes([(first, 10.0), (chain, 10.0)], Capacity(num_gpus=8)) == 20
    work = [(note("alone", resources=GPU), 15.0), (first, 10.0), (chain, 20.0)]
    assert takes(work, Capacity(num_gpus=1)) == 45
    assert takes([*work, (note("more", resources=GPU), 15.0)], Capacity(num_gpus=2)) == 30


def test_work_without_gpus_waits_for_none() -> None:
    work = [*alike(2), *[(note(f"core {index}"), 5.0) for index in range(4)]]
    assert takes(work, Capacity(num_gpus=1, num_cpus=4)) == 20
    assert takes(work, Capacity(lanes=True)) == 20
    assert takes([*alike(2), *[(note(f"core {index}"), 10.0) for index in range(4)]], Capacity(lanes=True)) == 40
