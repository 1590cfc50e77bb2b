"""A sweep that evaluates its base and a trial of each format again: what the second run adds, and that a rerun of all
makes nothing.
"""

from pathlib import Path

import pytest

from pipeline.results.results import load
from tests.test_missing_data import lab, run

__all__ = ["lab"]  # a fixture


@pytest.mark.full
@pytest.mark.e2e
def test_a_base_and_a_trial_of_each_format_are_asked_twice(lab: Path) -> None:
    asked = ["only=[whole]", "sweep.axes.recipe=[bf16,w8a8_fp]", "base_reruns=1"]
    first = run(lab, *asked)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = {
        row["recipe"]: row
        for row in load(lab / "results" / "store", "tiny").summary().to_pylist()
        if row["score"] is not None
    }
    base, trial = rows["bf16"], rows["w8a8_fp"]
    assert (base["rerun_n"], base["rerun_num_changed"], base["rerun_difference"]) == (6, 0, 0.0)
    assert (trial["base_rerun_n"], trial["base_rerun_num_changed"]) == (6, 0)
    assert trial["rerun_n"] == 6 and trial["rerun_num_changed"] is not None
    assert trial["excess_flips"] == pytest.approx(trial["num_changed"] / 6)
    again = run(lab, *asked)
    assert "\n0 steps run" in again.stdout
