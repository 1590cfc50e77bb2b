"""Kill anything at any moment: no finished work is lost or done twice, and the tables come out to the byte."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.steps.step import StepRef
from pipeline.store.ledger import Ledger
from pipeline.store.manifest import read_manifest
from pipeline.store.store import open_storage
from tests.sweeping import (
    ROOT,
    collecting,
    driver,
    free_port,
    make_sweep,
    mlflow_runs,
    mlflow_server,
    stop_group,
    tables,
    wait_for,
    wait_until_it_answers,
)
from tests.synthetic import DISK_VARIABLE

# Garbage collection runs beside a sweep, again and again, or not.
BESIDE = [pytest.param(False, id="alone"), pytest.param(True, id="beside gc", marks=pytest.mark.full)]
TESTS_BESIDE = "PYTEST_XDIST_WORKER"  # in the environment of everything that one half of the tests starts
HALF = ["store.root=store", "tasks.a.limit=200", "tasks.b.limit=100"]
NUM_SHARDS = 120
VICTIMS = ["driver"] * 2 + ["worker"] * 4 + ["raylet"] * 2 + ["server"] * 2


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tables of a sweep that nothing disturbs."""
    own = make_sweep(tmp_path_factory.mktemp("undisturbed"))
    assert driver(own, "cluster=inline", *HALF, "tracking=off").wait() == 0
    return tables(own / "store")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray on three nodes besides the head, all on this machine."""
    monkeypatch.setenv("RAY_process_group_cleanup_enabled", "true")
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        started.add_node(num_cpus=1)
    yield started
    started.shutdown()


def started_again(store: Path) -> list[str]:
    """Steps that were started after they had been published."""
    ledger, guilty = Ledger(open_storage(store)), []
    for path in store.glob("*/*/manifest.json"):
        manifest = read_manifest(path.parent)
        if manifest["stage"] == "report":
            continue
        events = ledger.events(StepRef(manifest["stage"], manifest["fingerprint"]))
        if max(event["time"] for event in events if event["event"] == "started") > manifest["provenance"]["ended"]:
            guilty.append(path.parent.name)
    return guilty


def beside(own: Path, with_gc: bool) -> AbstractContextManager[None]:
    return collecting(own, "store.root=store") if with_gc else nullcontext()


@pytest.mark.e2e
@pytest.mark.parametrize("with_gc", BESIDE)
def test_kill_anything_at_random_moments(own: Path, reference: dict[str, bytes], cluster: Any, with_gc: bool) -> None:
    """A driver, a worker, a node and the tracking server are killed in turn while one sweep runs to its end."""
    with beside(own, with_gc):
        _kill_in_turn(own, reference, cluster, VICTIMS * 2 if with_gc else VICTIMS)


def _kill_in_turn(own: Path, reference: dict[str, bytes], cluster: Any, victims: Sequence[str]) -> None:
    chance, port = random.Random(1), free_port()
    server = mlflow_server(own, port)
    wait_until_it_answers(port)
    arguments = [
        "cluster=existing",
        f"cluster.address={cluster.address}",
        *HALF,
        f"tracking.uri=http://127.0.0.1:{port}",
    ]
    nodes = [node for node in cluster.list_all_nodes() if not node.head]
    victims = chance.sample(victims, len(victims))
    sweep = driver(own, *arguments, sleep_s=0.5)
    while victims:
        time.sleep(chance.uniform(0.2, 3))
        if sweep.poll() is not None:
            assert sweep.returncode in (0, -signal.SIGKILL), (own / "driver.log").read_text()[-4000:]
            if sweep.returncode == 0:  # done too soon: there must be something to kill
                for path in chance.sample(sorted((own / "store" / "answer").iterdir()), NUM_SHARDS // 2):
                    shutil.rmtree(path)
            sweep = driver(own, *arguments, sleep_s=0.5)
            time.sleep(chance.choice([0, 8]))  # some are killed again before they do anything
        victim = victims.pop()
        if victim == "driver":
            _kill(sweep.pid)
            sweep.wait()
        elif victim == "server":
            stop_group(server, signal.SIGKILL)
            server = mlflow_server(own, port)
        elif victim == "raylet":
            node = chance.choice(nodes)
            nodes.remove(node)
            _kill(node.all_processes["raylet"][0].process.pid)
            cluster.remove_node(node, allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1))
        else:
            workers = [process.pid for process in psutil.process_iter() if _is_at_work(process)]
            if workers:
                _kill(workers[0])
            else:
                victims.insert(0, victim)  # none at work: later
    code = sweep.wait()
    for _ in range(2):  # the last driver may be dead; the one after it finds nothing to do but clean up
        code = driver(own, *arguments).wait()
    assert code == 0, (own / "driver.log").read_text()[-4000:]
    assert tables(own / "store") == reference
    assert not started_again(own / "store")
    assert not list((own / "store").glob("*/.draft-*"))
    assert not list((own / "store" / "ledger").glob("stop-*"))
    assert mlflow_runs(port) == {"parents": 1, "trials": 4}
    stop_group(server, signal.SIGTERM)
    assert not [process for process in psutil.process_iter() if _is_at_work(process)]


@pytest.mark.e2e
@pytest.mark.parametrize("with_gc", BESIDE)
def test_two_drivers_at_once_do_no_harm(own: Path, reference: dict[str, bytes], with_gc: bool) -> None:
    with beside(own, with_gc):
        both = [driver(own, "cluster=inline", *HALF, "tracking=off", sleep_s=0.01) for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0], (own / "driver.log").read_text()[-4000:]
    assert tables(own / "store") == reference
    artifacts = [path.parent.name for path in (own / "store" / "answer").glob("*/manifest.json")]
    assert len(artifacts) == len({name.rpartition("-")[2] for name in artifacts}) == NUM_SHARDS
    assert not list((own / "store").glob("*/.d*"))


@pytest.mark.e2e
def test_interrupted_once_it_finishes_what_is_in_flight(own: Path) -> None:
    arguments = ["cluster=inline", *HALF, "tracking=off"]
    sweep = driver(own, *arguments, sleep_s=0.2)
    wait_for(lambda: len(list((own / "store").glob("answer/*/manifest.json"))) >= 3)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    printed = (own / "driver.log").read_text()
    assert "stopped by the user" in printed
    assert "steps were not run" in printed
    events = [
        Ledger(open_storage(own / "store")).events(_ref(path)) for path in (own / "store" / "ledger").glob("answer-*")
    ]
    assert all(each[-1]["event"] == "succeeded" for each in events), "what was in flight must have been finished"
    assert 3 <= len(events) < NUM_SHARDS
    assert driver(own, *arguments).wait() == 0


@pytest.mark.e2e
def test_a_driver_on_ray_that_is_told_to_end_says_that_nothing_is_lost(own: Path) -> None:
    """As Slurm tells it when the time is over; Ray takes the signal for itself when it starts."""
    arguments = ["cluster.num_cpus=2", *HALF, "tracking=off"]
    sweep = driver(own, *arguments, sleep_s=0.2)
    wait_for(lambda: len(list((own / "store").glob("answer/*/manifest.json"))) >= 3)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait() == 130
    assert "stopped; the same command goes on where it was" in (own / "driver.log").read_text()
    (own / "driver.log").unlink()
    assert driver(own, *arguments, "mode=status").wait() == 0
    assert "crash" not in (own / "driver.log").read_text(), "a step that the user stopped has not failed"
    assert driver(own, *arguments).wait() == 0


@pytest.mark.e2e
def test_a_full_disk_stops_the_sweep_and_a_larger_one_lets_it_go_on(
    own: Path, reference: dict[str, bytes], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DISK_VARIABLE, "1")
    stored = ["cluster=inline", "tracking=off", *HALF, f"store.root={small_disk / 'store'}"]
    (small_disk / "other").write_bytes(bytes(2**20))
    assert driver(own, *stored).wait() == 2, "weights that cannot fit are refused before anything is made"
    assert "free space, or choose another with store.root=DIR" in (own / "driver.log").read_text()
    assert not list((small_disk / "store").glob("*/*/manifest.json"))
    unknown_size = [*stored, "model.shape=null"]
    assert driver(own, *unknown_size).wait() == 1
    assert "failed (disk)" in (own / "driver.log").read_text()
    assert list((small_disk / "store").glob("answer/*/manifest.json"))
    assert not list((small_disk / "store").glob("*/.draft-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert driver(own, *unknown_size).wait() == 0
    comparisons = {name: content for name, content in reference.items() if name != "summary"}
    assert tables(small_disk / "store").items() >= comparisons.items()


@pytest.mark.e2e
@pytest.mark.parametrize("budget", ["budget.gpu_hours=0.002", "budget.usd=0.00638"])  # 3.6 s of two H100
def test_a_budget_stops_the_run_before_it_is_overspent(own: Path, budget: str) -> None:
    arguments = ["cluster=inline", *HALF, "tracking=off", "+cluster.stages.answer.num_gpus=2"]
    sweep = driver(own, *arguments, budget, "gpu=h100", sleep_s=0.3)
    assert sweep.wait() == 1
    assert f"{budget} is used up" in (own / "driver.log").read_text()
    shards = list((own / "store" / "answer").glob("*/manifest.json"))
    assert 1 <= len(shards) <= 13


@pytest.mark.e2e
def test_failed_steps_are_recreated_elsewhere_from_a_file(own: Path) -> None:
    """Shards of one trial fail in one store; another store, given the file alone, makes them and what they need."""
    first = ["cluster=inline", *HALF, "store.root=first", "tracking=off"]
    assert driver(own, *first).wait() == 0
    lost = sorted((own / "first" / "answer").glob("*w8a8_int-piqa*"))[:3]
    fingerprints = {path.name: read_manifest(path)["fingerprint"] for path in lost}
    contents = {path.name: (path / "answers.parquet").read_bytes() for path in lost}
    for path in lost:
        ref = StepRef("answer", fingerprints[path.name])
        Ledger(open_storage(own / "first")).started(ref, "a run that died", None)
        shutil.rmtree(path)
    assert driver(own, *first, "mode=status", "failures.export=failed.json").wait() == 0
    exported = json.loads((own / "failed.json").read_text())
    assert {step["fingerprint"] for step in exported["steps"]} == set(fingerprints.values())
    elsewhere = ["mode=resubmit", "failures.from=failed.json", "cluster=inline", "store.root=second", "tracking=off"]
    process = _without_sweep(own, elsewhere)
    assert process.returncode == 0, process.stdout + process.stderr
    made = {path.name: path for path in (own / "second" / "answer").iterdir()}
    assert made.keys() == fingerprints.keys()
    for name, path in made.items():
        assert read_manifest(path)["fingerprint"] == fingerprints[name]
        assert (path / "answers.parquet").read_bytes() == contents[name]
    exported["environment"]["packages"]["torch"] = "1.0"
    (own / "failed.json").write_text(json.dumps(exported))
    refused = _without_sweep(own, elsewhere)
    assert refused.returncode == 2
    assert "package" in refused.stderr
    assert "allow_changed_environment=true" in refused.stderr


def _without_sweep(own: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command as it is typed elsewhere: the file names the sweep."""
    command = [sys.executable, "-m", "tests.synthetic", f"--config-dir={own / 'own'}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, check=False)


def _ref(ledger_file: Path) -> StepRef:
    stage, _, digits = ledger_file.stem.rpartition("-")
    return StepRef(stage, digits)


def _is_at_work(process: psutil.Process) -> bool:
    """Whether it is a worker of this test's cluster, and not of tests that run beside it."""
    try:
        name = (process.cmdline() or [""])[0]
        is_worker = process.status() != psutil.STATUS_ZOMBIE and name.startswith("ray::answer:llama31_8b")
        return is_worker and process.environ().get(TESTS_BESIDE) == os.environ.get(TESTS_BESIDE)
    except psutil.Error:
        return False


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
