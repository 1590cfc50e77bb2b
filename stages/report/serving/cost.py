"""What serving costs: from latencies, throughputs and a price list to queries per dollar and cost reduction.

Pure arithmetic over measurements: a new price needs no new measurement.  The quantities are those of arXiv 2411.02355,
tables 5 and 6.
"""

from collections.abc import Mapping

from stages.measured import Replicated, mean_ratio

SECONDS_AN_HOUR = 3600


def queries_per_usd(queries_per_s: Replicated, hourly_usd: float) -> Replicated:
    """Queries answered for a dollar at a steady rate; one after the other, the rate is 1 / latency."""
    return queries_per_s.times(SECONDS_AN_HOUR / hourly_usd)


def cost_reduction(queries_per_usd: Mapping[str, Replicated], base: Mapping[str, Replicated]) -> Replicated | None:
    """Mean over workloads of queries per dollar against the base's, each on the GPUs it needs; None: none in common."""
    return mean_ratio(queries_per_usd, base)


def speedup(queries_per_s: Mapping[str, Replicated], base: Mapping[str, Replicated]) -> Replicated | None:
    """Mean over workloads of the throughput against the base's on equal hardware; None: none in common."""
    return mean_ratio(queries_per_s, base)
