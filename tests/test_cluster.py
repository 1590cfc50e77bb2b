"""A cluster as pipeline/README.md says to start one: `ray start` on each machine, a token on disk, a driver beside."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.sweeping import ROOT, driver, free_port, make_sweep, tables, wait_for

RAY = Path(sys.executable).parent / "ray"
EVERYTHING = 240  # shards


class Machines:
    """Raylets of one cluster, all on this machine; ``home`` is where each finds the token."""

    def __init__(self, home: Path, *, has_token: bool = True) -> None:
        self.home, self.port = home, free_port()
        self._mode = {"RAY_AUTH_MODE": "token"} if has_token else {}
        if has_token:
            (home / ".ray").mkdir(parents=True)
            (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_head(self, num_cpus: int) -> None:
        self._start(num_cpus, "--head", f"--port={self.port}", "--include-dashboard=false")

    def add_node(self, num_cpus: int) -> None:
        self._start(num_cpus, f"--address={self.address}")

    def _start(self, num_cpus: int, *arguments: str) -> None:
        environment = {**os.environ, "HOME": str(self.home), "PYTHONPATH": str(ROOT), "SYNTHETIC_SLEEP_S": "0.5"}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", **self._mode}
        command = [str(RAY), "start", *arguments, f"--num-cpus={num_cpus}"]
        started = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert started.returncode == 0, started.stdout + started.stderr

    def kill_raylet(self, *, head: bool) -> None:
        [raylet] = [process for process in self._processes("raylet/raylet") if ("--head" in process.cmdline()) is head]
        raylet.kill()

    def stop(self) -> None:
        for process in self._processes(""):
            with suppress(psutil.Error):
                for each in (process, *process.children(recursive=True)):
                    each.kill()

    def _processes(self, program: str) -> list[psutil.Process]:
        """Those of this cluster: each is told its head's port."""
        found = []
        for process in psutil.process_iter():
            try:
                told = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if "ray" in told and program in told and any(f"{mark}{self.port} " in f"{told} " for mark in ":="):
                found.append(process)
        return found


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path / "home")
    yield made
    made.stop()


def drive(own: Path, home: Path, machines: Machines, *arguments: str) -> subprocess.Popen[bytes]:
    """A driver that knows of the token what its home says."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HOME", str(home))
        patched.delenv("RAY_AUTH_MODE", raising=False)
        at = f"cluster.address={machines.address}"
        return driver(own, "cluster=existing", at, "store.root=store", "tracking=off", *arguments)


def log(own: Path) -> str:
    return (own / "driver.log").read_text()


@pytest.mark.e2e
def test_the_documented_commands_work_with_a_token_on_disk(own: Path, machines: Machines) -> None:
    machines.start_head(num_cpus=2)
    little = ["tasks.a.limit=10", "tasks.b.limit=10"]
    assert drive(own, machines.home, machines, *little).wait() == 0, log(own)[-4000:]


@pytest.mark.full
def test_a_lost_node_is_said_and_waited_for_and_a_lost_head_ends_the_run(
    own: Path, machines: Machines, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Three processes with a token on disk: a head without CPUs, a node, a driver; about three minutes."""
    undisturbed = make_sweep(tmp_path_factory.mktemp("undisturbed"))
    assert driver(undisturbed, "cluster=inline", "store.root=store", "tracking=off").wait() == 0
    machines.start_head(num_cpus=0)
    machines.add_node(num_cpus=2)
    other = own / "other"
    (other / ".ray").mkdir(parents=True)
    assert drive(own, other, machines).wait() == 2
    assert "asks for a token and this machine has none: copy ~/.ray/auth_token of its head" in log(own)
    (other / ".ray" / "auth_token").write_text("fedcba9876543210" * 4)
    assert drive(own, other, machines).wait() == 2
    assert "the cluster does not take this machine's token" in log(own)
    assert "Traceback" not in log(own)
    sweep = drive(own, machines.home, machines)
    wait_for(lambda: num_shards(own) >= 5)
    machines.kill_raylet(head=False)
    wait_for(lambda: "no node can take this work: a step needs 1 CPUs on one node" in log(own), 60)
    wait_for(lambda: "nothing is running" in log(own), 60)
    assert "(2 CPUs, 0 GPUs) lost" in log(own)
    said = status(own)
    assert "no node can take this work" in said
    assert "crash" not in said, "the loss of a node says nothing against a step"

    before = num_shards(own)
    machines.add_node(num_cpus=2)
    wait_for(lambda: "a node can take the work that waited: going on" in log(own), 60)
    wait_for(lambda: num_shards(own) >= before + 5)
    machines.kill_raylet(head=True)
    assert sweep.wait(timeout=90) == 1, log(own)[-4000:]
    assert "the Ray node that this driver was connected to died: " in log(own)
    assert "failed (" not in log(own)
    said = status(own)
    assert "the Ray node that this driver was connected to died: " in said
    assert "crash" not in said
    assert num_shards(own) < EVERYTHING, "there must be something left to do"

    machines.stop()
    machines.start_head(num_cpus=2)
    assert drive(own, machines.home, machines).wait() == 0, log(own)[-4000:]
    assert tables(own / "store") == tables(undisturbed / "store")


@pytest.mark.full
def test_a_run_ends_when_no_node_comes_and_when_the_head_is_gone(own: Path, tmp_path: Path) -> None:
    """Without a token; about two minutes."""
    machines = Machines(tmp_path / "home", has_token=False)
    machines.home.mkdir()
    try:
        machines.start_head(num_cpus=0)
        machines.add_node(num_cpus=2)
        sweep = drive(own, machines.home, machines, "cluster.wait_for_nodes_s=20")
        wait_for(lambda: num_shards(own) >= 3)
        machines.kill_raylet(head=False)
        assert sweep.wait(timeout=120) == 1
        assert "no node could take the work for 20 s (cluster.wait_for_nodes_s)" in log(own)
        assert drive(own, machines.home, machines).wait() == 2
        assert "needs 1 CPUs on one node, but the cluster's largest node has 0" in log(own)

        machines.add_node(num_cpus=2)
        sweep, before = drive(own, machines.home, machines), num_shards(own)
        wait_for(lambda: num_shards(own) >= before + 3)
        [head] = machines._processes("gcs/gcs_server")
        head.send_signal(signal.SIGKILL)
        assert sweep.wait(timeout=120) == 1
        assert f"{machines.port}) is gone: " in log(own)
        assert "crash" not in status(own)
    finally:
        machines.stop()


def num_shards(own: Path) -> int:
    return len(list((own / "store").glob("answer/*/manifest.json")))


def status(own: Path) -> str:
    """What ``mode=status`` prints."""
    before = len(log(own))
    assert driver(own, "store.root=store", "tracking=off", "mode=status").wait() == 0
    return log(own)[before:]
