"""Servers, loads and doubts: real processes, GuideLLM against its null server, and what a reader is told of a point."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages.errors import ConfigError, EngineError
from stages.evaluate.config import EngineConfig
from stages.evaluate.engines import native
from stages.gpu import GpuState, check_fits, check_gpus, read_gpus
from stages.serving import measure, validity
from stages.serving.artifact import ClientCeiling
from stages.serving.config import ProfileConfig, ProfileMode, ServerConfig, WorkloadConfig
from stages.serving.kernels import kernels_of
from stages.serving.load import LoadClient, answered, requests_per_s, sustained_per_s
from stages.serving.measure import under_load
from stages.serving.process import Server, free_port
from stages.serving.prompts import random_prompts
from stages.serving.session import Session, serve, vllm_command
from stages.serving.stage import _check_kernels, open_session, profile

H100 = GpuState("NVIDIA H100 80GB HBM3", "570.1", 1980, 2619, 40, 120.0, 4.0, 81000.0, 0, False)
LOG = """\
(EngineCore pid=1) INFO 11-22 [core.py:133] Initializing a V1 LLM engine with config: enforce_eager=False, kv_cache
(EngineCore pid=1) INFO 11-22 [compressed_tensors_wNa16.py:108] Using MacheteLinearKernel for CompressedTensorsWNA16
(EngineCore pid=1) INFO 11-22 [cuda.py:367] Using FLASH_ATTN attention backend out of potential backends: FLASH_ATTN.
(EngineCore pid=1) INFO 11-22 [flash_attn.py:603] Using FlashAttention version 3
(EngineCore pid=1) INFO 11-22 [monitor.py:48] torch.compile took 21.50 s in total
(EngineCore pid=1) INFO 11-22 [kv_cache_utils.py:1307] GPU KV cache size: 431,216 tokens
(EngineCore pid=1) INFO 11-22 [gpu_model_runner.py:5061] Graph capturing finished in 9 secs, took 0.61 GiB
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    opened = LoadClient(1, tmp_path_factory.mktemp("client") / "client.log")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def null_server(tmp_path_factory):
    """A server that answers a token every 10 ms, until a test kills it."""
    port = free_port()
    server = Server(
        [sys.executable, "-m", "stages.serving.null_server", str(port), "2", "10"],
        {},
        tmp_path_factory.mktemp("null") / "log",
        port,
    )
    server.wait_until_ready(120, "the null server")
    yield server
    server.stop()


def session_of(server, client, tokenizer):
    ceiling = ClientCeiling(1000.0, 100_000.0)
    return Session(server, client, tokenizer, 300, False, {True: ceiling, False: ceiling})


def test_every_request_of_a_load_comes_back_with_its_times(null_server, client, tiny_model):
    session = session_of(null_server, client, tiny_model)
    requests = session.run({"kind": "synchronous"}, (16, 8), 6, True, seed=1)
    assert 5 <= len(requests) <= 6
    assert all(request["output_tokens"] == 8 and request["error"] is None for request in requests)
    assert all(request["start_s"] < request["end_s"] for request in requests)
    assert all(9 < request["ttft_ms"] < 2000 and 5 < request["itl_ms"] < 500 for request in requests)
    starts = [request["start_s"] for request in requests]
    assert starts == sorted(starts)
    assert all(before["end_s"] <= after["start_s"] for before, after in itertools.pairwise(requests))


def test_a_server_that_dies_voids_the_point(null_server, client, tiny_model, tmp_path):
    config = ProfileConfig(
        workload="w",
        load=WorkloadConfig(prompt_tokens=16, output_tokens=8, num_sync_requests=500),
        mode=ProfileMode.synchronous,
        engine=EngineConfig(),
        device="cpu",
        vllm="0",
    )
    session = session_of(null_server, client, tiny_model)
    threading.Timer(4, null_server.stop).start()
    with pytest.raises(EngineError, match=r"the server (died|failed)|answered none"):
        _profile_without_reset(config, {"checkpoint": tiny_model}, tmp_path, session)
    assert not (tmp_path / "point.json").exists()


def test_another_vllm_than_planned_is_refused_before_a_server_starts(tiny_model):
    config = ProfileConfig(
        workload="w",
        load=WorkloadConfig(prompt_tokens=16, output_tokens=8),
        mode=ProfileMode.synchronous,
        engine=EngineConfig(),
        device="cpu",
        vllm="0.0.1",
    )
    session = open_session(config, {"checkpoint": tiny_model})
    with pytest.raises(ConfigError, match=r"vLLM .* is here, not the planned 0\.0\.1: plan where"), session:
        pass


def _profile_without_reset(config, inputs, out, session):
    """A null server has no prefix cache to empty."""
    from unittest.mock import patch

    with patch.object(Session, "reset", lambda self: None):
        profile(config, inputs, out, session)


def test_a_client_that_cannot_ask_says_why(client, tiny_model):
    silent = Server([sys.executable, "-c", "import time; time.sleep(60)"], {}, Path(os.devnull), free_port())
    try:
        with pytest.raises(EngineError, match="the load client failed"):
            session_of(silent, client, tiny_model).run({"kind": "synchronous"}, (16, 8), 2, True, seed=1)
    finally:
        silent.stop()


def test_a_server_that_does_not_start_is_named_with_its_last_lines(tmp_path):
    code = "print('loading'); print('ValueError: no memory for the KV cache'); raise SystemExit(1)"
    server = Server([sys.executable, "-c", code], {}, tmp_path / "log", free_port())
    says = r"m did not start \(exit 1\): loading \| ValueError: no memory for the KV cache"
    with pytest.raises(EngineError, match=says):
        server.wait_until_ready(30, "m")


def test_a_server_that_takes_too_long_is_named_with_the_setting(tmp_path):
    server = Server([sys.executable, "-c", "import time; time.sleep(60)"], {}, tmp_path / "log", free_port())
    with pytest.raises(EngineError, match=r"not ready after 1 s \(server.start_timeout_s\): it wrote nothing"):
        server.wait_until_ready(1, "m")
    server.stop()


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path, tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use: set server.port to another one"):
            with serve(tiny_model, EngineConfig(), ServerConfig(port=port), False, tmp_path):
                pass


CHILD = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True); time.sleep(600)"  # noqa: E501


def test_stopping_ends_everything_that_was_started(tmp_path):
    server = Server([sys.executable, "-c", CHILD], {}, tmp_path / "log", free_port())
    pid = _number_in(tmp_path / "log")
    server.stop()
    assert not server.is_alive
    assert _is_gone(pid)


def test_a_server_does_not_outlive_a_killed_worker(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from stages.serving.process import Server;"
        f"Server([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'], {{}},"
        f" Path({str(tmp_path / 'log')!r}), 1); time.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code])
    pid = _number_in(tmp_path / "log")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert _is_gone(pid)


def _number_in(log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().strip():
            return int(log.read_text().split()[0])
        time.sleep(0.05)
    raise AssertionError("nothing was started")


def _is_gone(pid):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_what_the_log_says_of_kernels():
    assert asdict(kernels_of(LOG)) == {
        "linear": {"CompressedTensorsWNA16": "MacheteLinearKernel"},
        "attention": "FLASH_ATTN",
        "flash_attention_version": 3,
        "cuda_graphs": True,
        "cuda_graph_mode": None,
        "compile_s": 21.5,
        "kv_cache_tokens": 431216,
    }
    selected = "INFO Selected CutlassInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8\n"
    assert kernels_of(selected).linear == {"CompressedTensorsW8A8Int8": "CutlassInt8ScaledMMLinearKernel"}


@pytest.mark.parametrize(
    ("kernel", "capability", "said"),
    [
        ("MacheteLinearKernel", 9.0, None),
        (
            "MacheteLinearKernel",
            8.0,
            r"with MacheteLinearKernel here, and the table .* MarlinLinearKernel:",
        ),
        ("MacheteLinearKernel", None, None),
    ],
)
def test_a_server_whose_log_names_another_kernel_than_the_table_is_not_measured(
    tmp_path, monkeypatch, kernel, capability, said
):
    monkeypatch.setattr(native, "compute_capability", lambda: capability)
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "dynamic": False}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    quantization["format"] = "pack-quantized"
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    (tmp_path / "log").write_text(f"INFO Using {kernel} for CompressedTensorsWNA16\n")
    config = ProfileConfig(
        workload="w",
        load=WorkloadConfig(prompt_tokens=16, output_tokens=8),
        mode=ProfileMode.synchronous,
        engine=EngineConfig(on_gpu=True),
        device="H100",
        vllm="0.26.0",
    )
    session = SimpleNamespace(server=SimpleNamespace(log=tmp_path / "log"))
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        _check_kernels(config, tmp_path, session)


def test_what_the_log_does_not_say_is_not_known():
    found = kernels_of("config: enforce_eager=True\n")
    assert found.cuda_graphs is False
    assert {found.linear, found.attention, found.compile_s, found.kv_cache_tokens} == {None}


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (None, "no NVIDIA driver answers here, but the plan is for H100"),
        ([replace(H100, product="NVIDIA A100")], "the GPU here is NVIDIA A100, not the planned H100: choose gpu=NAME"),
        ([replace(H100, num_processes=1)], "is busy: 1 processes.*server.allow_busy_gpu=true"),
        ([H100, replace(H100, memory_used_mib=30000.0)], "is busy: 0 processes, 30000 MiB in use"),
    ],
)
def test_a_gpu_that_is_not_the_planned_one_or_busy_is_refused(states, message):
    with pytest.raises(ConfigError, match=message):
        check_gpus(states, "H100", None, allow_busy=False)


def test_another_driver_is_another_measurement():
    with pytest.raises(ConfigError, match=r"driver 570.1 is here, not the planned 550.5: plan again"):
        check_gpus([H100], "H100", "550.5", allow_busy=False)
    check_gpus([H100], "H100", "570.1", allow_busy=False)


def test_a_busy_gpu_is_measured_where_that_is_wanted():
    check_gpus([replace(H100, num_processes=2)], "H100", None, allow_busy=True)


def test_a_model_that_does_not_fit_is_refused_with_what_would_help():
    with pytest.raises(
        ConfigError, match=r"needs 140.0 GiB on each GPU, of which 71.2 may be used: raise engine.tensor"
    ):
        check_fits([H100], 140.0, 0.9)


def test_a_machine_without_a_driver_has_no_states():
    assert read_gpus(0) is None


def request(start, end, output_tokens=8, prompt_tokens=16, error=None):
    tokens = {"output_tokens": output_tokens, "prompt_tokens": prompt_tokens}
    return {"start_s": start, "end_s": end, "ttft_ms": 1.0, "itl_ms": 1.0, "error": error, **tokens}


def test_failed_requests_are_counted_and_in_no_rate():
    requests = [request(0, 1), request(1, 2), request(2, 2, error="refused"), request(2, 4)]
    assert len(answered(requests)) == 3
    assert requests_per_s(requests) == 3 / 4
    [reason] = validity.about_requests(requests, 16, 8)
    assert reason == "1 of 4 requests failed; the first: refused"


def test_a_rate_is_sustained_when_answers_keep_up_with_arrivals():
    slow_first = [request(second, max(second, 3) + 1) for second in range(5)]
    assert sustained_per_s(slow_first) == 4 / 4  # not the 4 answers of one second that came after the first
    growing_queue = [request(second, 3 * second + 1) for second in range(5)]
    assert sustained_per_s(growing_queue) == 4 / 12
    assert sustained_per_s(growing_queue[:2]) is None


@pytest.mark.parametrize("length", [1, 16, 300])
def test_prompts_are_as_long_as_asked_and_all_different(tiny_model, length):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = random_prompts(tokenizer, 8, length, seed=1)
    found = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    assert all(abs(len(ids) - length) <= max(1, 0.02 * length) for ids in found)
    assert prompts == random_prompts(tokenizer, 8, length, seed=1) != random_prompts(tokenizer, 8, length, seed=2)
    assert length == 1 or len(set(prompts)) == 8


def test_answers_of_another_length_make_a_point_invalid():
    assert validity.about_requests([request(0, 1)] * 3, 16, 8) == []
    [short] = validity.about_requests([request(0, 1, output_tokens=5)], 16, 8)
    assert short == "1 answers have not 8 tokens; the first has 5"
    [long] = validity.about_requests([request(0, 1, prompt_tokens=30)], 16, 8)
    assert long == "1 prompts are not of 16 tokens; the first has 30"


def test_a_bottleneck_before_the_engine_is_noticed():
    """64 requests/s came through HTTP where the engine alone did 80.8."""
    [reason] = validity.about_http(64.0, 80.8, 0.85)
    assert reason.startswith("HTTP is the limit: 64.00 requests/s through the server, 80.80 by the same engine")
    assert validity.about_http(75.0, 80.8, 0.85) == validity.about_http(64.0, None, 0.85) == []
    [reason] = validity.about_client(90.0, 128, ClientCeiling(100.0, None))
    assert "90% of the 100 requests/s that it reaches against a null server" in reason
    assert validity.about_client(50.0, 128, ClientCeiling(100.0, 20_000.0)) == []


def test_heat_and_company_make_a_point_invalid():
    assert validity.about_gpus([H100], [replace(H100, temperature_c=70)]) == []
    assert validity.about_gpus(None, None) == []
    slowed = validity.about_gpus([H100], [replace(H100, is_slowed=True, temperature_c=91)])
    assert slowed == ["the GPU was slowed by heat or its power supply (91 °C)"]
    assert validity.about_gpus([H100], [replace(H100, num_processes=1)]) == [
        "another process came onto the GPU, or left it"
    ]


def test_the_server_is_started_as_the_plan_says(tiny_model):
    engine = EngineConfig(on_gpu=True, tensor_parallel_size=2, max_num_seqs=64, kv_cache_gib=1.5)
    text = " ".join(vllm_command(tiny_model, engine, ServerConfig(num_api_servers=4, replicas=3), True, 8001))
    assert f"vllm.entrypoints.cli.main serve {tiny_model} " in text
    for expected in (
        "--tensor-parallel-size 2",
        "--data-parallel-size 3",
        "--api-server-count 4",
        "--load-format dummy",
        "--kv-cache-memory-bytes 1610612736",
    ):
        assert expected in text
    own = {"disable_custom_all_reduce": True, "async_scheduling": False, "hf_overrides": {"rope_theta": 2}}
    own |= {"block_size": 32, "cudagraph_capture_sizes": [1, 2], "max_num_batched_tokens": None}
    given = vllm_command(tiny_model, EngineConfig(vllm_args=own), ServerConfig(), False, 8001)
    assert given[-9:] == [
        *("--disable-custom-all-reduce", "--no-async-scheduling", "--hf-overrides", '{"rope_theta": 2}'),
        *("--block-size", "32", "--cudagraph-capture-sizes", "1", "2"),
    ]
    alone = " ".join(vllm_command(tiny_model, EngineConfig(), ServerConfig(), False, 8001))
    assert f"vllm.entrypoints.openai.api_server --model {tiny_model} " in alone
    assert "api-server-count" not in alone
    assert "kv-cache" not in alone


def test_workloads_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="concurrency must be at least 1"):
        WorkloadConfig(prompt_tokens=1, output_tokens=1, concurrency=0)
    with pytest.raises(ValueError, match="rates are shares of the maximum throughput"):
        WorkloadConfig(prompt_tokens=1, output_tokens=1, rates=[20.0])


def test_only_answers_under_load_count_at_a_rate():
    """Two that ended after the last request had come met an emptying queue."""
    done = [request(0, 2), request(1, 3), request(2, 4), request(3, 5), request(4, 6)]
    assert under_load(done) == done[:3]


@dataclass
class Canned:
    """A session that was served already."""

    requests: list[dict[str, float | int | None]]
    ceilings = dict.fromkeys((True, False), ClientCeiling(1e6, 1e9))

    def run(self, *_: object) -> list[dict[str, float | int | None]]:
        return self.requests

    def direct_rate(self, *_: object) -> float:
        return 1e-6

    def reset(self) -> None: ...


def one_by_one(latencies: list[float]) -> Canned:
    ends = list(itertools.accumulate(latencies))
    return Canned([request(end - latency, end) for end, latency in zip(ends, latencies, strict=True)])


def asked(mode: ProfileMode, **load: object) -> ProfileConfig:
    workload = WorkloadConfig(prompt_tokens=16, output_tokens=8, **load)
    return ProfileConfig(workload="w", load=workload, mode=mode, engine=EngineConfig(), device="cpu", vllm="0")


def test_how_much_is_cut_as_warm_up_is_not_chosen_by_what_was_measured():
    """Eight alike, of which a rule that looks at them cuts up to half: what is left seems steadier than it is."""
    rng = np.random.default_rng(0)
    cuts = {
        measure.synchronous(asked(ProfileMode.synchronous), one_by_one(rng.lognormal(0, 0.05, 8).tolist())).num_warm_up
        for _ in range(50)
    }
    assert cuts == {1}


def test_one_start_has_a_rate_without_an_interval():
    """However often it was asked: what the start happened to be is in every answer."""
    alone = measure.synchronous(asked(ProfileMode.synchronous), one_by_one([1.0, 1.1, 0.9, 1.0, 1.05, 0.95]))
    full = measure.throughput(asked(ProfileMode.throughput, num_runs=3), one_by_one([1.0, 1.1]))
    assert [asdict(each.rate).keys() for each in (alone, full)] == [{"mean"}] * 2
    assert full.repeats == [pytest.approx(2 / 2.1)] * 3


@pytest.mark.parametrize(("growth", "is_steady"), [(0.0, True), (1.0, False)])
def test_a_rate_at_which_answers_grow_slower_is_not_valid(growth, is_steady):
    many = [request(i, i + 1) | {"itl_ms": 10.0 * (1 + growth * i / 50) + i % 3} for i in range(50)]
    found = measure.at_rate(asked(ProfileMode.rate), Canned(many), 1.0)
    assert (found.reasons == []) == is_steady
    assert is_steady or "no steady state was found in the 49 answers" in found.reasons[0]
    few = measure.at_rate(asked(ProfileMode.rate), Canned(many[:12]), 1.0)
    assert "no steady state was found in the 11 answers" in few.reasons[0]


def test_each_start_asks_prompts_of_its_own():
    first = asked(ProfileMode.throughput)
    assert measure.seed_of(first, 1) != measure.seed_of(replace(first, start=2), 1)


def test_the_cause_of_a_failed_start_is_told_and_its_log_kept(tmp_path, tiny_model, capfd, monkeypatch):
    """vLLM's log ends with a line that points back to the cause, dozens of lines above."""
    code = (
        "print('(EngineCore) torch.OutOfMemoryError: CUDA out of memory');"
        "print('\\n'.join(f'  File {i}' for i in range(30)));"
        "print('RuntimeError: Engine core initialization failed. See root cause above.'); raise SystemExit(1)"
    )
    monkeypatch.setattr("stages.serving.session.vllm_command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr("stages.serving.session.client_ceilings", lambda *_: {})
    with pytest.raises(EngineError, match="CUDA out of memory") as told:
        with serve(tiny_model, EngineConfig(), ServerConfig(), False, tmp_path):
            pass
    assert "\n" not in str(told.value)
    assert "File 29" in capfd.readouterr().err


def test_a_gpu_that_was_busy_before_is_told_with_every_point():
    assert validity.about_company(False) == []
    assert validity.about_company(True) == ["others were on the GPU when the server started (server.allow_busy_gpu)"]
    assert validity.about_gpus([replace(H100, num_processes=2)], [H100]) != []
