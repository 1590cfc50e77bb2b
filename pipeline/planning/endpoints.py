"""What can be known to be wrong with servers that somebody else runs, before anything is asked of one."""

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config, DataConfig
from pipeline.errors import UserError
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.planning.remembered import cached, stamps
from pipeline.planning.task_facts import answered_by_catalog, task_paths
from pipeline.steps.fingerprint import canonical_json
from stages.evaluate.config import EngineConfig


def check_engines(plan: Plan, cache_dir: Path | None) -> None:
    """Raise UserError for trials whose engine cannot answer their tasks, or whose answers could not be compared."""
    for planned in plan.trials.values():
        _check_base(plan, planned)
    servers = [planned for planned in plan.trials.values() if planned.trial.config.engine.is_endpoint]
    for planned in servers:
        _check_said(planned.trial.config)
    _check_one_checkpoint_each(servers)
    _check_writes(plan, servers, cache_dir)


def _check_said(config: Config) -> None:
    if (lacking := config.engine.lacking) is not None:
        raise UserError(lacking)
    for slot, task in config.tasks.items():
        if (refused := config.engine.refused_sampling(task.gen_kwargs)) is not None:
            raise UserError(f"tasks.{slot}.{refused}")


def _check_base(plan: Plan, planned: TrialPlan) -> None:
    trial, base = planned.trial, plan.trials[planned.trial.base].trial
    one, other = trial.config.engine.kind.name, base.config.engine.kind.name
    if one != other and trial.config.tasks:
        raise UserError(
            f"{trial.name} is answered by engine {one} and its base {base.name} by {other}, which cannot be compared: "
            "use one engine for both"
        )


def _check_one_checkpoint_each(servers: list[TrialPlan]) -> None:
    """Or one model would answer for two trials, and nothing would be lost between them."""
    first: dict[tuple[str | None, str | None], tuple[str, str]] = {}
    for planned in servers:
        trial, engine = planned.trial, planned.trial.config.engine
        is_what = canonical_json([planned.checkpoint.fingerprint, engine.server_flags])
        other, known = first.setdefault((engine.url, engine.served_model), (trial.name, is_what))
        if known != is_what:
            raise UserError(
                f"{other} and {trial.name} are both answered by {engine.served_model} at {engine.url}, which cannot be "
                "two things: give each its own engine.served_model or engine.url in the sweep's adjust, and neither on "
                "the command line"
            )


def _check_writes(plan: Plan, servers: Iterable[TrialPlan], cache_dir: Path | None) -> None:
    """Of what the configs do not say lm-eval's own files are asked; what they leave open only a shard can tell."""
    steps = [(planned.trial.config.data, plan.steps[ref]) for planned in servers for ref in planned.shards]
    for _, step in steps:
        if step.output_tokens == 0:
            raise UserError(EngineConfig.refusal(step.config.task))
    unknown = {step.config.task: step.config.overrides for _, step in steps if step.output_tokens is None}
    if not unknown:
        return
    for task, known in _described(unknown, steps[0][0], cache_dir).items():
        if known.get("output_type", {}).get(task) not in (None, "generate_until"):
            raise UserError(EngineConfig.refusal(task))


def _described(tasks: Mapping[str, Any], data: DataConfig, cache_dir: Path | None) -> dict[str, Any]:
    paths = task_paths(data)
    asked = {name: [name, overrides, False] for name, overrides in sorted(tasks.items())}
    request = {"tasks": asked, "include_paths": paths, "mirror": None}
    key = ["kinds 1", metadata.version("lm_eval"), request, [stamps(Path(path)) for path in paths]]
    facts: dict[str, Any] = cached(cache_dir, key, lambda: answered_by_catalog(request))
    return facts
