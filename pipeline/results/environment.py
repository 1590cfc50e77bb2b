"""Whether this environment is the one that a sweep was begun in: packages, commit, and what each model stands for."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.steps.fingerprint import differences
from pipeline.steps.stages import FETCH_TOKENIZER
from pipeline.store.manifest import code_of
from pipeline.store.provenance import git_state, package_versions

_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}")

Environment = Mapping[str, Any]


def environment(plan: Plan) -> dict[str, Any]:
    """What could make the same step come out differently: packages, commit, and the weights each model stands for."""
    git = git_state(Path(__file__).resolve().parent)
    models = {_model(trial): trial.model.fingerprint for trial in plan.trials.values()}
    return {"packages": package_versions(), "git": code_of(git), "weights": models}


def _model(trial: TrialPlan) -> str:
    """Of a model that a server elsewhere has, the tokenizer alone is known here."""
    name = trial.trial.config.model.name
    return f"{name} (tokenizer)" if trial.model.stage == FETCH_TOKENIZER.name else name


def changes(then: Environment, now: Environment) -> list[str]:
    """One line for every way in which two environments differ."""
    shown = {"packages": "package ", "git": "git commit", "weights": "weights of "}
    found = []
    for path, old, new in differences(dict(then), dict(now)):
        kind, _, name = path.partition(".")
        old_text, new_text = (_short(str(value)) for value in (old, new))
        found.append(f"{shown.get(kind, kind)}{name}: {old_text} -> {new_text}")
    return found


def _short(text: str) -> str:
    """The beginning of a digest; what stands behind it stays."""
    return _DIGEST.sub(r"\1", text)


def check_unchanged(then: Environment | None, now: Environment, allow: bool) -> list[str]:
    """The changes to record; raises UserError when there are some that nobody allowed."""
    found = changes(then, now) if then else []
    if found and not allow:
        raise UserError(
            f"this is not the environment that the sweep was run with ({'; '.join(found)}): restore it, or set "
            "allow_changed_environment=true, which the results will show"
        )
    return found
