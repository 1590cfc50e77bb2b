"""What is known of a task's metrics: how values become a score, and which way is better."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stages.errors import ConfigError
from stages.evaluate.artifact import MetricFacts
from stages.evaluate.refusals import NAMELESS
from stages.evaluate.repeats import OF_REPEATS


def metric_facts(task: Any, roots: Sequence[Path], seen: Sequence[str]) -> dict[str, MetricFacts]:
    """``aggregation`` and ``higher_is_better`` of every ``<metric>,<filter>``: declared ones, then others ``seen``.

    Raises ConfigError for an aggregation that cannot be found again by name.
    """
    filters = [ensemble.name for ensemble in task._filters]
    declared = [f"{metric},{name}" for name in filters for metric in task.aggregation()]
    directions = task.higher_is_better()
    facts = {}
    for column in dict.fromkeys([*declared, *seen]):
        metric = OF_REPEATS.sub("", column.rpartition(",")[0])
        facts[column] = MetricFacts(
            aggregation=_aggregation(metric, task.aggregation().get(metric), roots),
            higher_is_better=directions.get(metric),
        )
    return facts


def _aggregation(metric: str, function: Any, roots: Sequence[Path]) -> dict[str, str]:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    if function is None:
        return {"name": "mean"}  # what lm-eval does with a metric that names none
    for name, registered in AGGREGATION_REGISTRY.items():
        if function is registered:
            return {"name": name}
    name = getattr(function, "__qualname__", "")
    if not isinstance(function, partial) and name.isidentifier():
        file = Path(function.__code__.co_filename).resolve()
        for root in roots:
            if file.is_relative_to(root.resolve()):
                return {"file": file.relative_to(root.resolve()).as_posix(), "function": name}
    raise ConfigError(f"metric {metric} {NAMELESS}")
