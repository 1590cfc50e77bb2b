"""What an engine may take of a GPU that is not empty, and what is said of one that is full."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from stages.errors import ConfigError, EngineError
from stages.gpu import GpuState, HeldGpu, held_gpus, num_visible_gpus
from stages.gpu_memory import memory_used_mib, utilization

TOTAL_MIB = 80 * 1024
EMPTY = GpuState("NVIDIA H100 80GB HBM3", "570.1", 1980, 2619, 40, 120.0, 0.0, TOTAL_MIB, 0, False)


def with_used(gib):
    return replace(EMPTY, memory_used_mib=gib * 1024.0, memory_free_mib=TOTAL_MIB - gib * 1024.0)


def test_an_engine_takes_no_more_than_is_free():
    """vLLM refuses to start where it finds less free than its share of all memory."""
    for used_gib, share in ((0, 0.9), (2, 0.9), (40, 0.475)):
        assert utilization(0.9, 1, 15.0, lambda _, used_gib=used_gib: [with_used(used_gib)]) == pytest.approx(share)
    assert utilization(0.2, 1, 8.0, lambda _: [with_used(20)]) == 0.2, "a small engine beside others takes its own"


def test_the_fullest_gpu_decides_for_all_ranks():
    assert utilization(0.9, 2, 15.0, lambda _: [EMPTY, with_used(40)]) == pytest.approx(0.475)


def test_memory_that_is_freed_late_is_waited_for():
    found = iter([[with_used(79)], [with_used(79)], [EMPTY]])
    assert utilization(0.9, 1, 15.0, lambda _: next(found), patience_s=20.0) == 0.9


class NoDriverError(Exception):
    pass


@pytest.fixture
def driver(monkeypatch):
    """NVIDIA's library with one GPU, on which init (process 1) holds 70 GiB and another one no known amount."""
    processes = [SimpleNamespace(pid=1, usedGpuMemory=70 * 2**30), SimpleNamespace(pid=2**30, usedGpuMemory=None)]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library = SimpleNamespace(
        NVMLError=NoDriverError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: processes,
        nvmlDeviceGetIndex=lambda handle: handle,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)


def test_what_is_in_the_way_is_named(driver):
    with pytest.raises(EngineError) as caught:
        utilization(0.9, 1, 15.0, lambda _: [with_used(70)], patience_s=0)
    said = str(caught.value)
    assert "the weights need 15.0 GiB, but 10.0 of 80.0 GiB are free" in said
    assert "in the way: pid 1 " in said
    assert "70.0 GiB, pid 1073741824; end that, or wait" in said
    assert "\n" not in said


def test_a_gpu_is_known_by_its_host_s_number_whatever_the_process_sees(driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert held_gpus(2) == [HeldGpu(3, "GPU-3"), HeldGpu(5, "GPU-5")]
    assert held_gpus(0.25) == [HeldGpu(3, "GPU-3")]
    assert held_gpus(0) == []
    assert held_gpus(3) is None, "the others are on another host"
    assert num_visible_gpus() == 2


def test_weights_that_an_empty_gpu_would_not_hold_are_nobodys_fault():
    """Nothing is waited for."""
    with pytest.raises(ConfigError, match=r"share 0\.9 allows 72\.0: raise engine\.gpu_memory_utilization, gpus_per"):
        utilization(0.9, 1, 140.0, lambda _: [with_used(70)])


def test_without_a_driver_nothing_is_known_and_nothing_changed():
    assert utilization(0.9, 1, 15.0, lambda _: None) == 0.9
    assert memory_used_mib(1, lambda _: None) is None
    assert memory_used_mib(2, lambda _: [EMPTY, with_used(2)]) == [0, 2048]
