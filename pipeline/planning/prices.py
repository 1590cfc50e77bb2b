"""What the GPUs of a plan's steps cost an hour."""

from pipeline.planning.plan import Plan
from pipeline.steps.step import Step
from stages.report.config import usd_per_hour


def usd_an_hour(plan: Plan, step: Step) -> float | None:
    """Dollars for an hour of the GPUs that a step holds, at their share of the machine; None without a price."""
    if not step.resources.num_gpus:
        return 0.0
    config = plan.trials[step.trial].trial.config
    return usd_per_hour(config.gpu, step.resources.num_gpus) if config.has_price else None
