"""What serving costs, as a user asks for it: vLLM's server on a CPU, GuideLLM's load, tables and pictures."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.results.results import load
from tests.test_end_to_end import environment

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]
SMALL = ["+sweep=smoke_profile", "sweep.axes.recipe=[bf16]", "model.weights=dummy"]
FEWER_RUNS = ["workloads.first_token_64.num_runs=1", "workloads.short.num_runs=2"]


def run(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline", "cluster=inline", *SMALL, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=directory, env=environment(), text=True, **streams)  # type: ignore[call-overload]


def test_a_sweep_says_what_a_format_costs_to_serve(tmp_path: Path) -> None:
    process = run(tmp_path, *FEWER_RUNS)
    printed, _ = process.communicate(timeout=800)
    assert process.returncode == 0, printed
    assert re.search(r"smollm2_135m/bf16\s+short\s+throughput\s+[\d.]+", printed)
    points = {(row["workload"], row["mode"]): row for row in serving(tmp_path)}
    assert len(points) == 5
    for point in points.values():
        assert point["num_failed"] == 0
        assert point["requests_per_s"] > 0
        if point["is_valid"] and not point["mode"].startswith("rate"):
            rate = 1 / point["latency_s_median"] if point["mode"] == "synchronous" else point["requests_per_s"]
            assert point["queries_per_usd"] == pytest.approx(rate * 3600 / 0.10)
    assert points["short", "synchronous"]["ttft_ms_median"] < 1000 * points["short", "synchronous"]["latency_s_median"]
    assert points["short", "throughput"]["direct_requests_per_s"] > 0
    assert points["short", "throughput"]["ttft_ms_median"] is None, "answers were not streamed"
    requests = [pq.read_table(path).to_pylist() for path in artifacts(tmp_path).glob("*/requests.parquet")]
    assert all(request["output_tokens"] == 8 for rows in requests for request in rows)
    pictures = {path.name for path in (tmp_path / "results" / "mlartifacts").rglob("*.svg")}
    assert "smollm2_135m-none-latency.svg" in pictures
    assert not servers(tmp_path)


@pytest.mark.full
def test_a_server_killed_in_a_point_voids_that_point_and_a_rerun_fills_it(tmp_path: Path) -> None:
    """The second point is long enough to be hit; without retries the first run ends with it missing."""
    longer = ["workloads.first_token_64.num_sync_requests=60", "cluster.max_attempts=1", "cluster.back_off_s=0"]
    process = run(tmp_path, "workloads={first_token_64: {}, short: {rates: []}}", *longer)
    deadline = time.monotonic() + 600
    while not any("profile-" in path.name for path in (tmp_path / "results" / "store" / "ledger").glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    while not (found := [each for each in servers(tmp_path) if is_ready(each)]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    time.sleep(5)
    os.kill(found[0].pid, signal.SIGKILL)
    printed, _ = process.communicate(timeout=800)
    assert process.returncode == 1, printed
    assert "failed (engine)" in printed
    assert "the server died" in printed
    kept = {path.parent.name: path.read_bytes() for path in artifacts(tmp_path).glob("*/point.json")}
    assert len(kept) == 3, "the other points were measured on a new server"
    assert not any("first_token_64-synchronous" in name for name in kept)
    again = run(tmp_path, "workloads={first_token_64: {}, short: {rates: []}}", *longer)
    printed, _ = again.communicate(timeout=800)
    assert again.returncode == 0, printed
    after = {path.parent.name: path.read_bytes() for path in artifacts(tmp_path).glob("*/point.json")}
    assert len(after) == 4
    assert kept.items() <= after.items()


def artifacts(directory: Path) -> Path:
    return directory / "results" / "store" / "profile"


def serving(directory: Path) -> list[dict[str, object]]:
    table = load(directory / "results" / "store", "smoke_profile").serving()
    assert table is not None
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


def servers(directory: Path) -> list[psutil.Process]:
    """vLLM servers of this test's checkpoints."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(directory) in " ".join(process.info["cmdline"] or [])
        and "api_server" in " ".join(process.info["cmdline"])
    ]


def is_ready(process: psutil.Process) -> bool:
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp"))
