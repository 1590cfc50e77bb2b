"""The table of measured seconds: which row stands for a step, and what it comes to."""

import pytest

from pipeline.planning.rates import CPU, Rate, Rates, Work, measured_rates

SMALL = Rate("a", "answer", "choices", device="H100", num_parameters=1e9, each=(("documents", 1.0),))
LARGE = Rate("b", "answer", "choices", device="H100", num_parameters=64e9, sized_each=(("documents", 4.0),))
OF_TASK = Rate("c", "answer", "choices", ("hella*",), "H100", 1e9, fixed_s=7.0)
ON_CPU = Rate("d", "answer", "choices", device=CPU, num_parameters=1e9, fixed_s=99.0)
BESIDE = Rate("e", "compare", fixed_s=0.5)
RATES = Rates([SMALL, LARGE, OF_TASK, ON_CPU, BESIDE])


def work(**changes: object) -> Work:
    found = {"stage": "answer", "kind": "choices", "task": "arc", "device": "NVIDIA H100 80GB HBM3"}
    return Work(**{**found, "num_parameters": 10**9, "amounts": {"documents": 10.0}, **changes})  # type: ignore[arg-type]


def test_the_nearest_size_stands_for_a_model() -> None:
    assert RATES.nearest(work()) is SMALL
    assert RATES.nearest(work(num_parameters=7 * 10**9)) is SMALL
    assert RATES.nearest(work(num_parameters=9 * 10**9)) is LARGE


def test_a_row_of_the_task_goes_before_a_nearer_size_and_one_of_the_device_before_both() -> None:
    assert RATES.nearest(work(task="hellaswag", num_parameters=64 * 10**9)) is OF_TASK
    assert RATES.nearest(work(task="hellaswag", device=CPU)) is ON_CPU


def test_what_was_measured_elsewhere_is_offered_only_where_nothing_was_measured_here() -> None:
    found = RATES.nearest(work(device="NVIDIA A100"))
    assert found is not None
    assert not found.is_of_device("NVIDIA A100")
    assert SMALL.is_of_device("NVIDIA H100 80GB HBM3")
    assert not SMALL.is_of_device(None)


def test_work_beside_the_models_has_rows_of_its_own() -> None:
    assert RATES.nearest(work(stage="compare", kind="", device="")) is BESIDE
    assert RATES.nearest(work(stage="compare", kind="")) is None
    assert RATES.nearest(work(kind=None)) is None


def test_the_sized_part_grows_with_the_model_and_is_shared_by_ranks() -> None:
    assert SMALL.seconds(work(num_parameters=10**12)) == 10
    assert LARGE.seconds(work(num_parameters=64 * 10**9)) == 40
    assert LARGE.seconds(work(num_parameters=128 * 10**9)) == 80
    assert LARGE.seconds(work(num_parameters=128 * 10**9, num_ranks=4)) == 20
    assert LARGE.seconds(work(num_parameters=None)) is None
    assert SMALL.seconds(work(num_parameters=None)) == 10


@pytest.mark.parametrize("stage", ["answer", "quantize", "gate"])
def test_the_project_s_table_knows_two_gpus_and_a_processor(stage: str) -> None:
    rows = [rate for rate in measured_rates()._rates if rate.stage == stage]
    assert {rate.device for rate in rows} == {"H100", "H200", CPU}
    assert all(rate.source for rate in rows)
    assert all(rate.fixed_s or rate.each or rate.sized_s or rate.sized_each for rate in rows)
