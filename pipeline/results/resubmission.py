"""Failed steps as a portable file, and whether this environment is the one that a sweep was begun in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.config.command_line import text_of
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.results.environment import Environment
from pipeline.steps.fingerprint import described, differences
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import Failure
from pipeline.store.manifest import is_ref, write_durably
from stages.fields import is_command

FILE_VERSION = 1
FROM = "failures.from="
# What belongs to a machine or to one command, not to the sweep.
NOT_OF_THE_SWEEP = {each.name for each in fields(Config) if is_command(each)}


def check_usage(mode: str, failures: Mapping[str, str | None]) -> None:
    """Raise UserError for a ``failures.*`` that the mode would pass over in silence."""
    for name, value in failures.items():
        if value is not None and not value.strip():
            raise UserError(f"failures.{name} is empty (an unset variable?): give it a value, or leave it out")
        wanted = "status" if name == "export" else "resubmit"
        if value is not None and mode != wanted:
            raise UserError(f"failures.{name} has no meaning in mode={mode}: use mode={wanted}")
    if failures["from"] is not None and (failures["class"] or failures["step"]):
        raise UserError("failures.from takes every step of its file: leave out failures.class and failures.step")


def export(
    path: Path, plan: Plan, failures: Mapping[StepRef, Failure], overrides: Sequence[str], then: Environment
) -> int:
    """Write the failed steps, the overrides that plan them, and the environment; returns how many."""
    steps = [
        {
            "stage": ref.stage,
            "fingerprint": ref.fingerprint,
            "label": plan.steps[ref].label,
            "payload": plan.steps[ref].payload,
            "failure_class": failure.failure_class.value,
            "message": failure.message,
        }
        for ref, failure in failures.items()
    ]
    content = {
        "version": FILE_VERSION,
        "sweep": plan.name,
        "overrides": [text for text in overrides if _group(text) not in NOT_OF_THE_SWEEP],
        "environment": dict(then),
        "steps": steps,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(content, indent=1, ensure_ascii=False))
    return len(steps)


def read(path: Path) -> dict[str, Any]:
    """What ``export`` wrote; raises UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{FROM}{path}: there is no such file") from None
    except (OSError, ValueError, RecursionError):
        content = None
    if not _is_export(content):
        raise UserError(
            f"{FROM}{path} is not a file that failures.export= of this version wrote, or was changed since: write it "
            "again with mode=status failures.export=FILE"
        )
    return dict(content)


def _is_export(content: object) -> bool:
    """Whether everything is there, and of its type, that anybody reads of the file."""
    match content:
        case {
            "version": version,
            "sweep": str(),
            "overrides": list(overrides),
            "environment": dict(),
            "steps": list(steps),
        }:
            return (
                version == FILE_VERSION
                and all(isinstance(text, str) for text in overrides)
                and all(map(_is_exported_step, steps))
            )
    return False


def _is_exported_step(step: object) -> bool:
    match step:
        case {"stage": stage, "fingerprint": fingerprint, "label": str(), "payload": [_, str(), _, _, dict()]}:
            return is_ref([stage, fingerprint])
    return False


def recreated(content: Mapping[str, Any], plan: Plan, allow_changes: bool) -> list[StepRef]:
    """The file's steps in this plan.  A step that would come out as another one is refused, with what differs.

    With ``allow_changes`` the step of the same label takes its place.
    """
    by_label = {(step.stage.name, step.label): step for step in plan.steps.values()}
    refs = []
    for wanted in content["steps"]:
        ref = StepRef(wanted["stage"], wanted["fingerprint"])
        same = by_label.get((wanted["stage"], wanted["label"]))
        if ref not in plan.steps and not (same and allow_changes):
            raise UserError(f"{ref.short} of the file is not a step of this plan: {_difference(wanted, same)}")
        refs.append(ref if ref in plan.steps else same.ref)  # type: ignore[union-attr]
    return refs


def _difference(wanted: Mapping[str, Any], same: Step | None) -> str:
    if same is None:
        return f"nothing in it is called {wanted['label']}"
    found = differences(described(wanted["payload"]), described(same.payload))
    fields = ", ".join(f"{path.removeprefix('config.')}: {old!r} -> {new!r}" for path, old, new in found)
    return f"{fields}; make them the same, or set allow_changed_environment=true"


def with_overrides_of_file(arguments: Sequence[str]) -> list[str]:
    """The command line with the overrides of the file that ``failures.from=`` names; its own win."""
    place = next((index for index, text in enumerate(arguments) if text.startswith(FROM)), None)
    if place is None:
        return list(arguments)
    own = {_key(text) for text in arguments}
    file = text_of(arguments[place])
    if not file.strip():
        raise UserError(f"{FROM} is empty (an unset variable?): give it a file, or leave it out")
    overrides = read(Path(file))["overrides"]
    if strange := [text for text in overrides if text.startswith("-") or _group(text) in NOT_OF_THE_SWEEP]:
        raise UserError(f"{FROM}{file} sets {strange[0]}, which is no part of a sweep: take it out of the file")
    # Beside it, because argparse takes overrides only in one piece.
    return [*arguments[:place], *(text for text in overrides if _key(text) not in own), *arguments[place:]]


def _key(override: str) -> str:
    return override.lstrip("+~/").partition("=")[0]


def _group(override: str) -> str:
    return _key(override).partition(".")[0].partition("@")[0]
