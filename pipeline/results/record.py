"""The record of a sweep in its store, ``sweeps/NAME.json``: its latest plan by trials and roles, and its report.

Results are found again by it without the configs that made them, and garbage collection leaves what it names.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.steps.fingerprint import fingerprint
from pipeline.steps.roles import Roles, shard_role
from pipeline.steps.step import StepRef
from pipeline.store.manifest import file_name, is_ref, portable
from pipeline.store.store import Store

VERSION = 2  # 1: a field for each role a step can have, and no version


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial as a finished or running sweep left it on disk; ``steps`` by role, as in a plan."""

    name: str
    base: str
    model: str
    recipe: str
    steps: Roles

    @property
    def checkpoint(self) -> StepRef:
        """What was evaluated and served."""
        return self.steps["checkpoint"]


@dataclass(frozen=True, slots=True)
class Record:
    """What a sweep's name stands for in its store."""

    name: str
    plan_fingerprint: str
    environment: Mapping[str, Any] | None  # of the first run, whatever the plan was then
    trials: Mapping[str, TrialRecord]
    steps: frozenset[StepRef]  # of the whole plan
    report: StepRef | None


def read(store: Store, name: str) -> Record | None:
    """What was last saved under a sweep's name; None before anything was.

    Raises UserError for a record that is damaged or of a newer version.
    """
    for file, found in _kept(store, name).items():
        if found.get("name") == name:
            with _trusted(store, f"sweeps/{file}.json"):
                return _record(found)
    return None


def document(store: Store, file: str) -> dict[str, Any] | None:
    """A record as it lies in the store; None where there is none.  Raises UserError for one that cannot be trusted."""
    place = f"sweeps/{file}.json"
    with _trusted(store, place):
        if (text := store.records.read(place)) is None:
            return None
        found: dict[str, Any] = json.loads(text)
        version = found.get("version", 1)
        if version > VERSION:
            raise UserError(
                f"{store.url} was written by a newer version of this project ({place} has version {version}, known up "
                f"to {VERSION}): use that one"
            )
        if version == 1:
            _check_is({list: [found["trials"]]})
        else:
            _check_names_all(found)
    return found


@contextmanager
def _trusted(store: Store, place: str) -> Iterator[None]:
    """Say of whatever goes wrong with a record's content that the record is damaged."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{store.url}: {place} is damaged: restore it, or remove it and run its sweep again") from None
    except OSError as error:
        raise UserError(
            f"{store.url}: {place} cannot be read ({error.strerror}): make it readable, or restore it"
        ) from None


def _check_names_all(found: Mapping[str, Any]) -> None:
    """Raise what ``_trusted`` catches for a record with a step that is none, or without one it should have."""
    record = _record(found)
    trials = record.trials.values()
    refs = [*map(tuple, found["steps"]), *(ref for trial in trials for ref in trial.steps.values())]
    refs += [record.report] if record.report is not None else []
    if strange := [ref for ref in refs if not is_ref(list(ref))]:
        raise ValueError(f"{strange[0]} is no step")
    labels = [label for trial in trials for label in (trial.name, trial.base, trial.model, trial.recipe)]
    _check_is({str: [record.name, record.plan_fingerprint, *labels], dict: [record.environment or {}]})


def _check_is(values: Mapping[type, list[Any]]) -> None:
    for kind, found in values.items():
        if strange := [each for each in found if not isinstance(each, kind)]:
            raise TypeError(f"{strange[0]!r:.60} is not of type {kind.__name__}")


def _record(found: Mapping[str, Any]) -> Record:
    return Record(
        name=found["name"],
        plan_fingerprint=found["plan_fingerprint"],
        environment=found.get("environment"),
        trials={trial["name"]: _trial(trial) for trial in found["trials"]},
        steps=frozenset(StepRef(*ref) for ref in found.get("steps", [])),
        report=_ref(found["report"]),
    )


def files(store: Store) -> list[str]:
    """The files that hold records."""
    with _trusted(store, "sweeps"):
        return [name.removesuffix(".json") for name in store.records.records("sweeps") if name.endswith(".json")]


def names(store: Store) -> list[str]:
    """The sweeps that the store has a record of."""
    found = (document(store, file) for file in files(store))
    return [name for each in found if each is not None and (name := each.get("name")) is not None]


def save(
    store: Store,
    plan: Plan,
    report: StepRef | None,
    environment: Mapping[str, Any] | None = None,
    upcoming: Sequence[StepRef] = (),
) -> None:
    """Write down what the sweep consists of, before anything is made of it; ``upcoming`` is about to be.

    What is not given (``report``) and what is known already (``environment``, of the first run) stays as the same plan
    left it.
    """
    last = read(store, plan.name)
    if last is not None and last.plan_fingerprint != plan.fingerprint:
        last = None
    record = {
        "version": VERSION,
        "name": plan.name,
        "plan_fingerprint": plan.fingerprint,
        "environment": (last and last.environment) or environment,
        "trials": [_trial_json(trial) for trial in plan.trials.values()],
        "steps": [*plan.steps, *upcoming],
        "report": report or (last and last.report),
    }
    owners = {file: kept.get("name") for file, kept in _kept(store, plan.name).items()}
    own = next(file for file in _files(plan.name) if owners.get(file, plan.name) == plan.name)
    store.records.write(f"sweeps/{own}.json", json.dumps(record, indent=1))
    for file, owner in owners.items():
        if owner == plan.name and file != own:
            store.records.delete(f"sweeps/{file}.json")


def first_environment(store: Store, name: str) -> Mapping[str, Any] | None:
    """The environment that a sweep of this name was first run in; None if it never was."""
    last = read(store, name)
    return last.environment if last else None


def num_replaced(store: Store, plan: Plan) -> int:
    """How many steps of the plan that this sweep's name stood for until now are in the store and not in this plan."""
    last = read(store, plan.name)
    return sum(ref not in plan.steps and store.has(ref) for ref in (last.steps if last else ()))


def _files(name: str) -> list[str]:
    """Where a sweep's record may be, best first: under its name if a file can have it, or with a digest of the name."""
    plain = file_name(name)
    return [*([plain] if plain == name else []), f"{plain}@{fingerprint(name)[:12]}"]


def _kept(store: Store, name: str) -> dict[str, dict[str, Any]]:
    """What lies where a sweep's record may be; earlier versions kept it there whatever its name lost as a file's."""
    present = set(files(store))
    places = [file for file in (*_files(name), portable(name)) if file in present]
    return {file: found for file in places if (found := document(store, file)) is not None}


def _trial_json(trial: TrialPlan) -> dict[str, Any]:
    return {
        "name": trial.trial.name,
        "base": trial.trial.base,
        "model": trial.trial.config.model.name,
        "recipe": trial.trial.config.recipe.name,
        "steps": trial.steps,
    }


def _trial(record: Mapping[str, Any]) -> TrialRecord:
    roles = record["steps"] if "steps" in record else dict(_roles_of_version_1(record))
    return TrialRecord(
        name=record["name"],
        base=record["base"],
        model=record["model"],
        recipe=record["recipe"],
        steps={role: StepRef(*ref) for role, ref in roles.items()},
    )


def _roles_of_version_1(record: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for role in ("checkpoint", "calibration", "gate", "drift", "ceilings"):
        if record.get(role) is not None:
            yield role, record[role]
    for slot, leaves in record["evaluations"].items():
        for leaf, shards in leaves.items():
            yield from ((shard_role(slot, leaf, index), ref) for index, ref in enumerate(shards))
    yield from ((f"compare/{slot}", ref) for slot, ref in record["comparisons"].items())
    yield from ((f"profile/{point}", ref) for point, ref in record.get("profiles", {}).items())


def _ref(pair: list[str] | None) -> StepRef | None:
    return None if pair is None else StepRef(*pair)
