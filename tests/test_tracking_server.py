"""A real MLflow server on a real PostgreSQL: away for a while, asked twice."""

import getpass
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweeping import driver, free_port, mlflow_runs, mlflow_server, stop_group, wait_until_it_answers

ACCOUNT = "postgres"  # PostgreSQL refuses to run as root


def _tool(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(installed[-1]) if installed else shutil.which(name)


def _as_account(command: list[str]) -> list[str]:
    return ["runuser", "-u", ACCOUNT, "--", *command] if getpass.getuser() == "root" else command


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an empty database, on a socket that only this test knows."""
    if _tool("initdb") is None:
        pytest.skip("PostgreSQL is not installed")
    place = Path(os.path.realpath(f"/tmp/postgres_{os.getpid()}"))  # a socket's path must be short
    place.mkdir()
    if getpass.getuser() == "root":
        shutil.chown(place, ACCOUNT)
    data = place / "data"
    options = f"-c listen_addresses='' -c unix_socket_directories={place} -c fsync=off"
    control = [str(_tool("pg_ctl")), "-D", str(data), "-w", "-l", str(place / "log")]
    subprocess.run(_as_account([str(_tool("initdb")), "-D", str(data), "-A", "trust"]), check=True, capture_output=True)
    subprocess.run(_as_account([*control, "-o", options, "start"]), check=True, stdout=subprocess.DEVNULL)
    account = ACCOUNT if getpass.getuser() == "root" else getpass.getuser()
    yield f"postgresql+psycopg2://{account}@/postgres?host={place}"
    subprocess.run(_as_account([*control, "-m", "immediate", "stop"]), check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(place)


@pytest.mark.e2e
def test_a_server_that_is_away_changes_nothing_in_the_end(own: Path, database: str) -> None:
    port = free_port()
    little = ["store.root=store", "tasks.a.limit=60", "tasks.b.limit=40"]
    arguments = ["cluster=inline", *little, f"tracking.uri=http://127.0.0.1:{port}"]
    assert driver(own, *arguments).wait() == 0  # nobody listens yet
    assert "MLflow was not written" in (own / "driver.log").read_text()
    server = mlflow_server(own, port, database)
    try:
        wait_until_it_answers(port)
        for _ in range(2):
            assert driver(own, *arguments, "mode=mirror").wait() == 0, (own / "driver.log").read_text()[-3000:]
            assert mlflow_runs(port) == {"parents": 1, "trials": 4}
    finally:
        stop_group(server, signal.SIGTERM)
