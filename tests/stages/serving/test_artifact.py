"""A point reads back whole, and so do a device's ceilings."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from stages.errors import DataError
from stages.gpu import GpuState
from stages.serving.artifact import (
    CEILINGS,
    LOG,
    POINT,
    REQUESTS,
    ClientCeiling,
    Device,
    Distribution,
    Kernels,
    PointFacts,
    Rate,
    Validity,
    WarmUp,
    read_ceilings,
    read_point,
    write_ceilings,
    write_point,
)
from stages.serving.roofline import Work

GPU = GpuState("NVIDIA H100 80GB HBM3", "570.1", 1980, None, 40, 120.5, 4.0, 81000.0, 0, None)
KNOWN = Distribution(n=2, mean=1.5, median=1.5, p90=None, p99=None, spread=0.5)
FACTS = PointFacts(
    workload="rag",
    mode="rate",
    prompt_tokens=1024,
    output_tokens=128,
    num_gpus=1,
    replicas=1,
    rate_share=0.5,
    asked_requests_per_s=4.0,
    requests_per_s=Rate(mean=3.9),
    latency_s=KNOWN,
    ttft_ms=KNOWN,
    itl_ms=replace(KNOWN, n=0, mean=None, median=None, spread=None),
    direct_requests_per_s=None,
    validity=Validity(
        is_valid=False,
        reasons=["the GPU was slowed by heat or its power supply (91 °C)"],
        num_requests=10,
        num_failed=1,
        warm_up=WarmUp(num_discarded=2, method="the first fifth"),
        client_ceiling=ClientCeiling(500.0, None),
        repeats=[],
        spread=None,
    ),
    device=Device(product="H100", driver=None, before=None, after=[GPU]),
    kernels=Kernels(
        linear={"CompressedTensorsWNA16": "MacheteLinearKernel"},
        attention="FLASH_ATTN",
        flash_attention_version=3.0,
        cuda_graphs=True,
        cuda_graph_mode=None,
        compile_s=None,
        kv_cache_tokens=431216.0,
    ),
    work=Work(1024, 128, 15.0, 14.0, 128.0, 15.0, "bf16"),
    concurrency=256,
    start=2,
)


@pytest.fixture
def written(tmp_path):
    (tmp_path / "log").write_text("Using MacheteLinearKernel")
    write_point(tmp_path, FACTS, [{"start_s": 0.0, "error": None}], tmp_path / "log")
    return tmp_path


def test_a_point_reads_back_with_its_requests_and_log(written):
    assert read_point(written) == FACTS
    assert pq.read_table(written / REQUESTS).to_pylist() == [{"start_s": 0.0, "error": None}]
    assert (written / LOG).read_text() == "Using MacheteLinearKernel"


def test_a_point_of_before_starts_were_repeated_is_of_the_first(written):
    kept = json.loads((written / POINT).read_text())
    del kept["start"]
    kept["requests_per_s"] |= {"low": 3.0, "high": 4.0}
    kept["latency_s"] = {name: kept["latency_s"][name] for name in ("n", "median", "p90", "p99")} | {"low": 1.0}
    (written / POINT).write_text(json.dumps(kept))
    found = read_point(written)
    assert (found.start, found.latency_s.median, found.latency_s.p90_high) == (1, 1.5, None)


@pytest.mark.parametrize("damage", [{"requests_per_s": None}, {"validity": {}}, {"device": {"product": "H100"}}])
def test_a_damaged_point_is_named(written, damage):
    (written / POINT).write_text(json.dumps(json.loads((written / POINT).read_text()) | damage))
    with pytest.raises(DataError, match=r"point.json cannot be read.*delete it and run again"):
        read_point(written)


def test_ceilings_read_back_by_name(tmp_path):
    found = {"bandwidth_gb_s": 3000.0, "bf16_tflop_s": 800.0, "fp8_tflop_s": None}
    write_ceilings(tmp_path, "H100", found)
    assert read_ceilings(tmp_path) == found
    (tmp_path / CEILINGS).write_text("[3000.0]")
    with pytest.raises(DataError, match=r"ceilings.json cannot be read"):
        read_ceilings(tmp_path)
