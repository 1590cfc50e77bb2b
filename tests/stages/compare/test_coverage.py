"""How often intervals hold the truth and verdicts are wrong: the simulation of the benchmarks, in brief."""

import pytest

from tests.benchmarks.statistics import designs, wrong


@pytest.mark.dear
def test_intervals_hold_the_truth_and_verdicts_are_seldom_wrong():
    """Its streams are fixed: it finds the same on every machine, to three standard errors of so few replicates."""
    assert wrong([measure() for measure in designs(600)], slack=3) == []
