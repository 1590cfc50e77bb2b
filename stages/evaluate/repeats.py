"""What the scores of repeated answers to one document amount to."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stages.evaluate.config import ScoringConfig
from stages.evaluate.digests import dumps

Metrics = Mapping[str, Any]


def mean_of_repeats(each: Sequence[Metrics]) -> dict[str, float]:
    """The mean of every metric.  Raises ValueError for one that is no number: what lists amount to nobody says."""
    return {name: sum(values) / len(values) for name, values in _columns(each).items()}


def of_repeats(each: Sequence[Metrics], responses: Sequence[Any], config: ScoringConfig) -> dict[str, float]:
    """``<metric>_pass@<k>`` of those that are right or wrong, and ``<metric>_majority@<n>``, as far as they are asked.

    A k beyond the number of answers has no value.
    """
    if len(each) == 1:
        return {}
    found: dict[str, float] = {}
    columns = _columns(each)
    for name, values in columns.items():
        if set(values) <= {0.0, 1.0}:
            fitting = [k for k in config.pass_at if k <= len(values)]
            found |= {f"{name}_pass@{k}": pass_at(k, len(values), int(sum(values))) for k in fitting}
    if config.majority:
        chosen = _most_common(responses)
        found |= {f"{name}_majority@{len(each)}": values[chosen] for name, values in columns.items()}
    return found


def pass_at(k: int, num_answers: int, num_right: int) -> float:
    """The chance that one of ``k`` answers drawn from these is right: the unbiased estimate of pass@k.

    >>> pass_at(1, 4, 1), pass_at(4, 4, 1)
    (0.25, 1.0)
    """
    return 1.0 - math.comb(num_answers - num_right, k) / math.comb(num_answers, k)


def _columns(each: Sequence[Metrics]) -> dict[str, list[float]]:
    return {name: [_number(name, metrics[name]) for metrics in each] for name in each[0]}


def _number(name: str, value: Any) -> float:
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if not isinstance(value, bool | int | float):
        raise ValueError(f"{name} of repeated answers is no number, so it has no mean")
    return float(value)


def _most_common(responses: Sequence[Any]) -> int:
    """The place of the answer that is given most often; of equally many the one that comes first."""
    texts = [dumps(each) for each in responses]
    counts = Counter(texts)
    return texts.index(max(counts, key=lambda text: counts[text]))
