"""What can be known to be wrong with answers that lm-eval has written down, before they are brought in."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UserError
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.steps.fingerprint import canonical_json
from stages.errors import StageError
from stages.evaluate.recorded.artifact import RecordedRun, read_run, repeats_apart


def check_recorded(plan: Plan) -> None:
    """Raise UserError for recorded answers that are not there, are of something else, or could not be compared."""
    planned = [each for each in plan.trials.values() if each.trial.config.engine.is_recorded]
    runs = {each.trial.name: _run(plan, each) for each in planned}
    _check_one_trial_each(runs)
    for each in planned:
        _check_alike(each, runs)


def _run(plan: Plan, planned: TrialPlan) -> RecordedRun:
    config = planned.trial.config
    for slot, task in config.tasks.items():
        if (task.num_repeats or 1) > task.shard_size:
            raise UserError(f"tasks.{slot}: {repeats_apart(task.task)}")
    try:
        run = read_run(Path(str(config.engine.samples)))
        for leaf in dict.fromkeys(plan.steps[ref].config.task for ref in planned.shards):
            run.file_of(leaf)
    except StageError as error:
        raise UserError(f"{planned.trial.name}: {error}") from None
    return run


def _check_one_trial_each(runs: Mapping[str, RecordedRun]) -> None:
    """Or one model's answers would be two trials', and nothing would be lost between them."""
    first: dict[str, str] = {}
    for name, run in runs.items():
        if (other := first.setdefault(canonical_json(run.arithmetic), name)) != name:
            places = " and ".join(dict.fromkeys(str(each.directory) for each in (runs[other], run)))
            raise UserError(
                f"{other} and {name} are both answered by {run.checkpoint} ({places}), which cannot be two things: "
                "give each the run of its own checkpoint, engine.samples in the sweep's adjust"
            )


def _check_alike(planned: TrialPlan, runs: Mapping[str, RecordedRun]) -> None:
    trial = planned.trial
    base = runs.get(trial.base)
    if base is None:
        return
    if found := runs[trial.name].differs_from(base, trial.name, trial.base):
        raise UserError(f"{trial.name} and its base were not asked alike: {found}; run lm_eval alike on both")
