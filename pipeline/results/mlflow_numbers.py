"""Numbers as MLflow is given them: its pages print every digit of a metric, of which the last ten mean nothing."""

import math
from collections.abc import Mapping
from typing import Any

DIGITS = 6  # tell documents that are right apart from one more of 100,000


def shown(value: float) -> float:
    """With ``DIGITS`` significant digits, of which none before the point is lost; what has no number stays."""
    if not math.isfinite(value) or not value:
        return value
    return round(value, max(DIGITS - 1 - math.floor(math.log10(abs(value))), 0))


def metrics(values: Mapping[str, float], at_ms: int) -> list[Any]:
    """For ``log_batch``; the exact numbers are in the artifacts beside them."""
    from mlflow.entities import Metric

    return [Metric(key, shown(value), at_ms, 0) for key, value in values.items()]
