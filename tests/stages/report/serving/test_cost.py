"""The cost model against every printed cost reduction, speed-up and query per dollar of the study."""

import pytest
from hypothesis import strategies as st

from stages.measured import Replicated
from stages.report.config import GpuConfig, PriceConfig, usd_per_hour
from stages.report.serving.cost import cost_reduction, queries_per_usd, speedup
from tests.published import GPUS, SETUPS, TABLES, WORKLOADS, hourly_usd, recipes, row

QUANTIZED = [(model, gpu, recipe) for model, gpu in SETUPS for recipe in recipes(model, gpu)[1:]]

# The two places where the paper's tables contradict themselves (found when they were recomputed).
SPEEDUP_NOT_OF_ITS_CELLS = ("405B", "A100", "w8a8_int")  # printed 2.53; its queries per dollar say 2.35 to 2.43
PRICED_AS_H100 = ("405B", "A100")  # asynchronous queries per dollar at 47.84 $/h, which 16 H100 cost, not 28.64


def exactly(values):
    return dict(zip(WORKLOADS, map(Replicated, values), strict=True))


def sync_queries_per_usd(found, shift=0.0):
    latencies = exactly([value + shift for value in found["latency_s"]]).items()
    return {name: queries_per_usd(latency.reciprocal(), hourly_usd(found)) for name, latency in latencies}


def range_of_speedup(column, half_digits, quantized, base):
    """From the least to the greatest speed-up whose cells print as they do."""
    ends = []
    for sign in (-1, 1):
        cells = [exactly([v + s * h for v, h in zip(r[column], half_digits(r), strict=True)])
                 for r, s in ((quantized, sign), (base, -sign))]  # fmt: skip
        ends.append(speedup(*cells).value)
    return ends


def half_digit_of_thousands(found):
    return [0.5 if found["model"] == "405B" else 50.0] * len(WORKLOADS)  # 98 and 6.8k


@pytest.mark.parametrize(("model", "gpu", "recipe"), QUANTIZED)
def test_every_printed_cost_reduction(model, gpu, recipe):
    quantized, base = row("sync", model, gpu, recipe), row("sync", model, gpu, "bf16")
    found = cost_reduction(sync_queries_per_usd(quantized), sync_queries_per_usd(base))
    assert found.value == pytest.approx(quantized["cost_reduction"], abs=0.02)
    least = cost_reduction(sync_queries_per_usd(quantized, 0.05), sync_queries_per_usd(base, -0.05)).value
    most = cost_reduction(sync_queries_per_usd(quantized, -0.05), sync_queries_per_usd(base, 0.05)).value
    assert least - 0.005 <= quantized["cost_reduction"] <= most + 0.005


@pytest.mark.parametrize(("model", "gpu", "recipe"), QUANTIZED)
def test_every_printed_speedup(model, gpu, recipe):
    quantized, base = row("async", model, gpu, recipe), row("async", model, gpu, "bf16")
    ranges = [
        range_of_speedup("qps", lambda found: [0.05] * len(WORKLOADS), quantized, base),
        range_of_speedup("queries_per_usd", half_digit_of_thousands, quantized, base),
    ]
    agrees = [least - 0.005 <= quantized["speedup"] <= most + 0.005 for least, most in ranges]
    if (model, gpu, recipe) == SPEEDUP_NOT_OF_ITS_CELLS:
        assert agrees == [True, False]
    else:
        assert all(agrees)


@pytest.mark.parametrize(
    "found", TABLES["sync"], ids=lambda found: f"{found['model']}-{found['gpu']}-{found['recipe']}"
)
def test_every_printed_synchronous_query_per_dollar(found):
    least, most = sync_queries_per_usd(found, 0.05), sync_queries_per_usd(found, -0.05)
    for name, printed in zip(WORKLOADS, found["queries_per_usd"], strict=True):
        assert least[name].value - 0.5 <= printed <= most[name].value + 0.5, name


@pytest.mark.parametrize(
    "found", TABLES["async"], ids=lambda found: f"{found['model']}-{found['gpu']}-{found['recipe']}"
)
def test_every_printed_asynchronous_query_per_dollar(found):
    if (found["model"], found["gpu"]) == PRICED_AS_H100:
        found = found | {"gpu": "H100"}
    halves = half_digit_of_thousands(found)
    for qps, printed, half in zip(found["qps"], found["queries_per_usd"], halves, strict=True):
        least, most = (queries_per_usd(Replicated(qps + shift), hourly_usd(found)).value for shift in (-0.05, 0.05))
        assert least - half <= printed <= most + half


def test_the_tables_are_whole():
    assert len(TABLES["sync"]) == len(TABLES["async"]) == 18
    assert len(QUANTIZED) == 12


@pytest.mark.parametrize(
    ("gpu", "num_gpus", "expected"),
    [("H100", 1, 3.29), ("H100", 4, 12.36), ("H100", 16, 47.84), ("A100", 1, 1.79), ("A100", 16, 28.64)],
)
def test_machines_are_rented_as_the_study_rented_them(gpu, num_gpus, expected):
    assert usd_per_hour(GPUS[gpu], num_gpus) == pytest.approx(expected)


def test_a_gpu_without_a_price_is_refused_with_the_file_to_change():
    with pytest.raises(ValueError, match=r"gpu=h300 has no price: add prices: .* to conf/gpu/h300.yaml"):
        usd_per_hour(GpuConfig(name="h300", product="H300"), 1)


def test_a_price_must_be_one():
    with pytest.raises(ValueError, match="must be positive"):
        PriceConfig(num_gpus=1, usd_per_hour=0.0)


POSITIVE = st.floats(0.01, 1e4)


def test_what_was_not_measured_is_in_no_mean():
    base = exactly(range(1, 8))
    measured = {name: number.times(2) for name, number in base.items() if name != "rag"}
    assert speedup(measured, base).value == pytest.approx(2)
    assert speedup({}, base) is None
