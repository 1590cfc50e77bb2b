"""What the scores of repeated answers to one document amount to."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.evaluate.config import ScoringConfig
from stages.evaluate.digests import dumps

Metrics = Mapping[str, Any]
OF_REPEATS = re.compile(r"_(pass|majority)@\d+$")  # the end of a name that is made here


def mean_of_repeats(each: Sequence[Metrics]) -> dict[str, float]:
    """The mean of every metric.  Raises ValueError for one that is no number: what lists amount to nobody says."""
    return {name: sum(values) / len(values) for name, values in _columns(each).items()}


def of_repeats(each: Sequence[Metrics], responses: Sequence[Any], config: ScoringConfig) -> dict[str, float | None]:
    """``<metric>_pass@<k>`` of those that are right or wrong, and ``<metric>_majority@<n>``, as far as they are asked.

    A k beyond the number of answers has no value; pass@k of partial credit is None.
    """
    if len(each) == 1:
        return {}
    found: dict[str, float | None] = {}
    columns = _columns(each)
    for name, values in columns.items():
        is_right_or_wrong = set(values) <= {0.0, 1.0}
        for k in (k for k in config.pass_at if k <= len(values)):
            found[f"{name}_pass@{k}"] = pass_at(k, len(values), int(sum(values))) if is_right_or_wrong else None
    if config.majority:
        chosen = _most_common(responses)
        found |= {f"{name}_majority@{len(each)}": values[chosen] for name, values in columns.items()}
    return found


def drop_partial(documents: Iterable[dict[str, Any]]) -> None:
    """A metric that has no pass@k of one document has none of any: the others would be a mean of all or nothing."""
    documents = list(documents)
    partial = {name for metrics in documents for name, value in metrics.items() if _is_pass(name) and value is None}
    for metrics in documents:
        metrics |= dict.fromkeys(partial & metrics.keys())


def pass_at(k: int, num_answers: int, num_right: int) -> float:
    """The chance that one of ``k`` answers drawn from these is right: the unbiased estimate of pass@k.

    >>> pass_at(1, 4, 1), pass_at(4, 4, 1)
    (0.25, 1.0)
    """
    return 1.0 - math.comb(num_answers - num_right, k) / math.comb(num_answers, k)


def _is_pass(column: str) -> bool:
    found = OF_REPEATS.search(column.rpartition(",")[0])
    return found is not None and found[1] == "pass"


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
