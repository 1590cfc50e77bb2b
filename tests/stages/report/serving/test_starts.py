"""How often what is said of serving is wrong: the simulation of the benchmarks, in brief."""

from tests.benchmarks.grids import wrong
from tests.benchmarks.starts import simulations


def test_intervals_over_starts_hold_the_truth_and_verdicts_are_seldom_wrong():
    """Its streams are fixed: it finds the same on every machine, to three standard errors of so few replicates."""
    found = [each for simulate in simulations(100) for each in simulate()]
    assert wrong(found, slack=3) == []
