"""What is known of a task's metrics: how values become a score, which way is better, and what a document can score."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import ConfigError
from stages.evaluate.artifact import GRADED, PASS_AT, RIGHT_OR_WRONG, MetricFacts
from stages.evaluate.refusals import NAMELESS
from stages.evaluate.repeats import OF_REPEATS

# Those that lm-eval's own scorer gives a document 1 or 0 in.
_OF_LM_EVAL = frozenset(("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "exact_match_mcq"))


def metric_facts(
    task: Any, roots: Sequence[Path], scored: Iterable[Mapping[str, Any]], is_repeated: bool = False
) -> dict[str, MetricFacts]:
    """What is known of every ``<metric>,<filter>``: declared ones, then others that ``scored`` documents have.

    Raises ConfigError for an aggregation that cannot be found again by name.
    """
    filters = [ensemble.name for ensemble in task._filters]
    declared = [f"{metric},{name}" for name in filters for metric in task.aggregation()]
    directions = task.higher_is_better()
    values = _by_column(scored)
    facts = {}
    for column in dict.fromkeys([*declared, *values]):
        metric = OF_REPEATS.sub("", column.rpartition(",")[0])
        facts[column] = MetricFacts(
            aggregation=_aggregation(metric, task.aggregation().get(metric), roots),
            higher_is_better=directions.get(metric),
            kind=_kind_of_repeats(column) if is_repeated else _kind(task, metric, values.get(column, ())),
        )
    return facts


def _by_column(scored: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for metrics in scored:
        for column, value in metrics.items():
            found.setdefault(column, []).append(value)
    return found


def _kind_of_repeats(column: str) -> str:
    found = OF_REPEATS.search(column.rpartition(",")[0])
    return PASS_AT if found is not None and found[1] == "pass" and not found[0].endswith("@1") else GRADED


def _kind(task: Any, metric: str, values: Sequence[Any]) -> str:
    """lm-eval's own scorer by the metric's name; a task's own code says it by the type of what it returns: truth values
    and whole numbers are right or wrong, fractions are graded even where none happens to lie between 0 and 1.
    """
    from lm_eval.api.task import ConfigurableTask

    is_own = callable(task.config.process_results) or type(task).process_results is not ConfigurableTask.process_results
    if not is_own:
        return RIGHT_OR_WRONG if metric in _OF_LM_EVAL else GRADED
    whole = (bool, int, np.bool_, np.integer)
    is_whole = all(isinstance(value, whole) and value in (0, 1) for value in values)
    return RIGHT_OR_WRONG if values and is_whole else GRADED


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
