"""Small sweeps of synthetic stages as users run them: the command line in its own process, and servers beside it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
SWEEP = """\
# @package _global_
defaults:
  - override /model: llama31_8b
  - override /calibration: open_platypus
  - override /suite: none
sweep:
  name: small
  axes: {recipe: [bf16, w8a8_fp, w8a8_int, w4a16_int]}
engine: {num_cpus: 1}
cluster: {max_attempts: 20, back_off_s: 0, replicas: 2}
tasks:
  a: {task: piqa, num_docs: {piqa: 1838}, datasets: {baber/piqa: null}, limit: 400, shard_size: 10}
  b: {task: sciq, num_docs: {sciq: 1000}, datasets: {allenai/sciq: null}, limit: 200, shard_size: 10}
"""


def make_sweep(directory: Path) -> Path:
    """A directory with a sweep of 4 trials and 240 shards."""
    (directory / "own" / "sweep").mkdir(parents=True)
    (directory / "own" / "sweep" / "small.yaml").write_text(SWEEP)
    return directory


def driver(directory: Path, *arguments: str, sleep_s: float = 0.0) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SYNTHETIC_SLEEP_S": str(sleep_s), "OMP_NUM_THREADS": "1"}
    log = (directory / "driver.log").open("ab")
    command = [sys.executable, "-m", "tests.synthetic", f"--config-dir={directory / 'own'}", "+sweep=small", *arguments]
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)


@contextmanager
def collecting(directory: Path, *arguments: str) -> Iterator[None]:
    """Garbage collection by the command line, one after the other until the block ends; each must succeed."""
    over, codes, log = threading.Event(), list[int](), directory / "gc.log"
    command = [sys.executable, "-m", "tests.synthetic", f"--config-dir={directory / 'own'}", "+sweep=small"]

    def collect() -> None:
        while not over.is_set():
            with log.open("ab") as stream:
                process = subprocess.Popen(
                    [*command, "mode=gc", "gc.delete=true", *arguments],
                    cwd=directory,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                    stdout=stream,
                    stderr=stream,
                )
                codes.append(process.wait())

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert codes and not any(codes), log.read_text()[-4000:]


def tables(store: Path) -> dict[str, bytes]:
    """The bytes of every answer, score and comparison by its artifact's name, and of the report's summary; a report
    also says times.
    """
    sweep = json.loads((store / "sweeps" / "small.json").read_text())
    report = next((store / "report").glob(f"*-{sweep['report'][1][:12]}"))
    names = ("answer/*/answers.parquet", "score/*/samples.parquet", "compare/*/comparison.parquet")
    found = {str(path.parent.relative_to(store)): path.read_bytes() for name in names for path in store.glob(name)}
    return found | {"summary": (report / "summary.parquet").read_bytes()}


def wait_for(condition: Callable[[], object], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.1)


def stop_group(server: subprocess.Popen[bytes], number: int) -> None:
    """A server started with a session of its own, and the processes it has started."""
    os.killpg(server.pid, number)
    server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mlflow_server(directory: Path, port: int, database: str | None = None) -> subprocess.Popen[bytes]:
    log = (directory / "server.log").open("ab")
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    places = [
        "--backend-store-uri",
        database or f"sqlite:///{directory}/served.db",
        "--artifacts-destination",
        str(directory / "served"),
    ]
    return subprocess.Popen([*command, *places], cwd=directory, stdout=log, stderr=log, start_new_session=True)


def wait_until_it_answers(port: int) -> None:
    """Wait for an MLflow server: one that is killed while it makes its tables never starts again on what it left."""

    def answers() -> bool:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return True
        return False

    wait_for(answers)


def mlflow_runs(port: int) -> dict[str, int]:
    import mlflow

    client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = sum("mlflow.parentRunId" not in run.data.tags for run in runs)
    assert all(run.info.status == "FINISHED" for run in runs)
    return {"parents": parents, "trials": len(runs) - parents}
