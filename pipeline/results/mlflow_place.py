"""Where a sweep is mirrored: which MLflow, and the experiment in it."""

import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.config.execution import TrackingConfig
from pipeline.errors import UserError
from stages.errors import redacted

VARIABLE = "MLFLOW_TRACKING_URI"
ARTIFACTS = "mlartifacts"
LOCAL = "http://127.0.0.1:5000"  # where ``mlflow ui`` listens


@dataclass(frozen=True, slots=True)
class Place:
    """An MLflow by its URI; ``artifacts`` is where its files go if that is ours to say."""

    uri: str
    artifacts: Path | None = None


def place_of(settings: TrackingConfig, beside: Path) -> Place:
    """What the config names, or else MLflow's own variable; without both SQLite beside a store's directory."""
    if uri := settings.uri or os.environ.get(VARIABLE):
        return Place(uri)
    parent = beside.resolve().parent
    return Place(_sqlite(parent / "mlflow.db"), parent / ARTIFACTS)


def named_by(settings: TrackingConfig) -> str:
    """What says which MLflow it is."""
    return VARIABLE if settings.uri is None and os.environ.get(VARIABLE) else "tracking.uri"


def review_line(settings: TrackingConfig, beside: Path, page: str | None = None) -> str | None:
    """How to open MLflow on the results; None where none is, or the config names a database.

    ``page`` is the address of what is to be seen there, behind the host.
    """
    if not settings.enabled:
        return None
    if settings.uri is not None:
        return f"{redacted(settings.uri).rstrip('/')}/{page}" if page and settings.uri.startswith("http") else None
    place = place_of(settings, beside)
    if place.artifacts is None:
        return f"{place.uri} ({VARIABLE})"
    database = place.artifacts.with_name("mlflow.db")
    shown = database.relative_to(Path.cwd()) if database.is_relative_to(Path.cwd()) else database
    where = "" if page is None else f", then {LOCAL}/{page}"
    return f"mlflow ui --backend-store-uri {shlex.quote(_sqlite(shown))}{where}"


def _sqlite(database: Path) -> str:
    # To SQLAlchemy a question mark begins options, and a per cent sign a character.
    return f"sqlite:///{str(database).replace('%', '%25').replace('?', '%3F')}"


def connect(place: Place, is_hasty: bool = False) -> Any:
    """A client of the MLflow there; a hasty one waits a few seconds at most."""
    # MLflow's own 7 retries with back-off would hold the sweep's end up for minutes when its server is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if is_hasty:
        os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for name in ("mlflow", "alembic"):  # creating the database is no news for the terminal
        logging.getLogger(name).setLevel(logging.WARNING)
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_without_secrets)
    return mlflow.MlflowClient(place.uri)


def _without_secrets(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(record.getMessage()), None
    return True


def experiment_id(client: Any, place: Place, name: str) -> str:
    """The experiment of that name, made if there is none.

    Raises UserError for one that was deleted, and for one whose files would go where the store was before it was moved.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=place.artifacts and place.artifacts.as_uri()))
    if found.lifecycle_stage == "deleted":
        command = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        raise UserError(
            f"the experiment {name!r} was deleted in MLflow: bring it back with "
            f"{VARIABLE}={shlex.quote(redacted(place.uri))} {command}, or use another, tracking.experiment=NAME"
        )
    if place.artifacts is not None:
        _check_not_moved(place.artifacts, found.artifact_location)
    return str(found.experiment_id)


def _check_not_moved(artifacts: Path, recorded: str) -> None:
    """MLflow keeps absolute paths, so a database that was moved or copied goes on writing at the old place."""
    before = Path(unquote(urlsplit(recorded).path))
    if before.name != ARTIFACTS or before.resolve() == artifacts:
        return
    database = artifacts.with_name("mlflow.db")
    raise UserError(
        f"{database} was moved here and keeps its files in {before}. Move it aside and write it anew from the store, "
        f"with mode=mirror for each sweep: mv {shlex.quote(str(database))} {shlex.quote(f'{database}.moved')}"
    )
