"""What can be known to be wrong with servers that somebody else runs, before anything is asked of one."""

from collections.abc import Iterable

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.planning.facts import Facts
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.planning.recorded import check_recorded
from pipeline.planning.task_facts import task_key
from pipeline.steps.fingerprint import canonical_json
from stages.evaluate.config import EngineConfig


def check_engines(plan: Plan, facts: Facts) -> None:
    """Raise UserError for trials whose engine cannot answer their tasks, or whose answers could not be compared."""
    for planned in plan.trials.values():
        _check_base(plan, planned)
    check_recorded(plan)
    servers = [planned for planned in plan.trials.values() if planned.trial.config.engine.is_endpoint]
    for planned in servers:
        _check_said(planned.trial.config)
    _check_one_checkpoint_each(servers)
    _check_writes(servers, facts)


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


def _check_writes(servers: Iterable[TrialPlan], facts: Facts) -> None:
    """What lm-eval's files leave open only a shard can tell."""
    for planned in servers:
        for task in planned.trial.config.tasks.values():
            known = facts.tasks[task_key(task)]
            for leaf in known.leaves:
                if known.output_tokens[leaf] == 0 or known.output_types[leaf] not in (None, "generate_until"):
                    raise UserError(EngineConfig.refusal(leaf))
