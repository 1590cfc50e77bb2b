"""Which MLflow is written, in what state it may be found, and how it shows runs that did not end by themselves."""

import functools
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import driver, modes
from pipeline.config.execution import TrackingConfig
from pipeline.config.schema import Config
from pipeline.context import PlannedSweep
from pipeline.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.results.mlflow_mirror import Mirror
from pipeline.results.mlflow_place import place_of, review_line
from pipeline.store.store import Store
from tests.pipeline.fakes import note
from tests.pipeline.planning.test_plan import trials_of
from tests.sweeping import free_port

DEFAULT = TrackingConfig()


def test_the_config_is_asked_before_mlflow_s_own_variable_and_that_before_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    beside = tmp_path / "store"
    assert place_of(DEFAULT, beside).uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert review_line(DEFAULT, beside) == "mlflow ui --backend-store-uri sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:sesame@host")
    assert place_of(DEFAULT, beside).uri == "http://me:sesame@host"
    assert place_of(DEFAULT, beside).artifacts is None
    assert review_line(DEFAULT, beside) == "http://me:sesame@host (MLFLOW_TRACKING_URI)"
    assert place_of(TrackingConfig(uri="http://other"), beside).uri == "http://other"
    assert review_line(TrackingConfig(uri="http://other"), beside) is None
    assert review_line(TrackingConfig(uri="http://other/"), beside, "#/experiments/1") == "http://other/#/experiments/1"
    assert review_line(TrackingConfig(enabled=False), beside) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert place_of(DEFAULT, beside).uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_command_for_a_review_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    line = review_line(DEFAULT, tmp_path / "my runs?" / "store")
    assert line is not None
    assert shlex.split(line)[-1] == f"sqlite:///{tmp_path}/my runs%3F/mlflow.db"


@pytest.fixture
def home(mlflow_at: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a database, where a store's parent may be."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return mlflow_at(tmp_path / "mlflow.db").parent


def mirror(home: Path, text: str, name: str = "sweep", store: str = "store") -> Mirror:
    step = note(text)
    return Mirror(Plan(name, {}, {step.ref: step}), Store(home / store), DEFAULT)


def client(home: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def status_of(each: Mirror, home: Path) -> str:
    found = client(home)
    experiment = found.get_experiment_by_name(each.plan.name)
    [run] = found.search_runs([experiment.experiment_id], f"tags.plan_fingerprint = '{each.plan.fingerprint}'")
    return str(run.info.status)


@pytest.mark.dear
@pytest.mark.parametrize("named_by", ["tracking.uri", "MLFLOW_TRACKING_URI"])
def test_a_server_that_is_away_is_named_by_what_says_where_it_is_and_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    uri = f"http://me:sesame@127.0.0.1:{free_port()}/x?token=sesame"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri if named_by == "MLFLOW_TRACKING_URI" else "http://not.this")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(modes, "publish_report", lambda _: note("a"))
    monkeypatch.setattr(Store, "path", lambda *_: None)
    settings = TrackingConfig(uri=uri if named_by == "tracking.uri" else None)
    sweep = PlannedSweep(
        lambda: Plan("sweep"), replace(config(), tracking=settings), Store(tmp_path / "store"), Console(quiet=True)
    )
    with pytest.raises(UserError, match=rf"http://\*\*\*@127.*token=\*\*\*.*check {named_by}, then run again") as said:
        modes.mirror(sweep)
    assert "sesame" not in str(said.value)


@pytest.mark.dear
def test_a_deleted_experiment_is_named_with_the_command_that_brings_it_back(home: Path) -> None:
    mirror(home, "a").write()
    found = client(home)
    experiment = found.get_experiment_by_name("sweep")
    found.delete_experiment(experiment.experiment_id)
    with pytest.raises(
        UserError, match="'sweep' was deleted in MLflow: bring it back with MLFLOW_TRACKING_URI"
    ) as said:
        mirror(home, "a").write()
    command = f"={shlex.quote(place_of(DEFAULT, home / 'store').uri)} mlflow experiments restore --experiment-id "
    assert f"{command}{experiment.experiment_id}, " in str(said.value)
    found.restore_experiment(experiment.experiment_id)
    mirror(home, "a").write()


@pytest.mark.dear
def test_a_database_that_was_moved_is_not_written_and_the_way_out_is_named(home: Path) -> None:
    old, new = home / "old", home / "new place"
    old.mkdir()
    (home / "mlflow.db").rename(old / "mlflow.db")
    mirror(old, "a").write()
    (home / "link").symlink_to(old)
    mirror(home / "link", "a").write()  # another name of the same place
    old.rename(new)
    with pytest.raises(UserError, match=rf"was moved here and keeps its files in {old}/mlartifacts") as said:
        mirror(new, "a").write()
    assert not old.exists(), "nothing is made where it was"
    command = shlex.split(str(said.value).rpartition(": ")[2])
    assert command[0] == "mv"
    Path(command[1]).rename(command[2])
    assert not (new / "mlflow.db").exists(), "MLflow makes another"


@pytest.mark.dear
def test_what_a_predecessor_left_running_is_closed_by_the_next_plan_of_the_name(home: Path) -> None:
    before, other_sweep, other_store = (
        mirror(home, "a"),
        mirror(home, "a", name="other"),
        mirror(home, "b", store="two"),
    )
    for each in (before, other_sweep, other_store):
        each.write(status="RUNNING")
    own = mirror(home, "c")
    own.write(status="RUNNING")
    assert status_of(before, home) == "KILLED"
    assert [status_of(each, home) for each in (own, other_sweep, other_store)] == ["RUNNING"] * 3
    before.write(status="RUNNING")
    assert status_of(before, home) == "RUNNING", "one that lives says so again"
    own.end("KILLED")
    assert status_of(own, home) == "KILLED"


class Recorder:
    """Stands for MLflow: what was written to it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def write(self, report: Path | None, status: str) -> None:
        self.said.append(("write", status))

    def end(self, status: str) -> None:
        self.said.append(("end", status))


def terminated(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def broken(*_: object) -> None:
    raise UserError("the cluster went away")


@pytest.mark.parametrize(
    ("place", "action", "error", "status"),
    [
        ("run", terminated, KeyboardInterrupt, "KILLED"),
        ("publish_report", terminated, KeyboardInterrupt, "KILLED"),
        ("run", broken, UserError, "FAILED"),
    ],
)
def test_a_run_that_is_broken_off_is_not_shown_as_running(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    action: Callable[..., None],
    error: type[BaseException],
    status: str,
) -> None:
    class Runner:
        def run(self, batches: object, context: object, on_done: Callable[[object], None], _: object) -> dict[str, str]:
            on_done([])
            if place == "run":
                action()
            return {}

    recorder = Recorder()
    step = note("a")
    sweep = PlannedSweep(
        lambda: Plan("sweep", {}, {step.ref: step}), config(), Store(tmp_path / "store"), Console(quiet=True)
    )
    monkeypatch.setattr(driver, "MIRROR_EVERY_S", 0)
    monkeypatch.setattr(driver, "mirror_of", lambda _: recorder)
    monkeypatch.setattr(driver, "make_runner", lambda *_: Runner())
    if place == "publish_report":
        monkeypatch.setattr(driver, "publish_report", lambda *_, **__: action())
    with pytest.raises(error):
        driver.run(sweep)
    assert recorder.said == [("write", "RUNNING"), ("end", status)]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@functools.cache
def config() -> Config:
    return trials_of("+sweep=smoke")[0].config
