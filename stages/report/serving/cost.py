"""What serving costs: from latencies, throughputs and a price list to queries per dollar and cost reduction.

Pure arithmetic over measurements: a new price needs no new measurement.  The quantities are those of arXiv 2411.02355,
tables 5 and 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stages.fields import identity
from stages.measured import Measured, mean_ratio

SECONDS_AN_HOUR = 3600


@dataclass(kw_only=True, slots=True)
class PriceConfig:
    """What a machine with ``num_gpus`` GPUs costs."""

    num_gpus: int = identity()
    usd_per_hour: float = identity()

    def __post_init__(self) -> None:
        if self.num_gpus < 1 or self.usd_per_hour <= 0:
            raise ValueError(f"gpu.prices: num_gpus and usd_per_hour must be positive; got {self}")


@dataclass(kw_only=True, slots=True)
class GpuConfig:
    """A GPU that is served on, and what it is rented for.

    ``product`` is a part of the name that the driver gives it; ``driver`` null is the one found when the plan is made.
    """

    name: str = identity()
    product: str = identity()
    driver: str | None = identity(None)
    prices: list[PriceConfig] = identity(factory=list)
    price_source: str | None = identity(None)
    priced_on: str | None = identity(None)  # YYYY-MM-DD


def usd_per_hour(gpu: GpuConfig, num_gpus: int) -> float:
    """The price of ``num_gpus`` GPUs.

    A number that is not listed costs its share of the smallest listed machine that has as many, or of the largest:
    two of an 8-GPU machine a quarter of it, sixteen twice as much.  Raises ValueError without any price.
    """
    if not gpu.prices:
        raise ValueError(
            f"gpu={gpu.name} has no price: add prices: [{{num_gpus: 1, usd_per_hour: ...}}] to conf/gpu/{gpu.name}.yaml"
        )
    listed = sorted(gpu.prices, key=lambda price: price.num_gpus)
    machine = next((price for price in listed if price.num_gpus >= num_gpus), listed[-1])
    return machine.usd_per_hour * num_gpus / machine.num_gpus


def queries_per_usd(queries_per_s: Measured, hourly_usd: float) -> Measured:
    """Queries answered for a dollar at a steady rate; one after the other, the rate is 1 / latency."""
    return queries_per_s.times(SECONDS_AN_HOUR / hourly_usd)


def usd_per_million_tokens(queries_per_s: Measured, output_tokens: int, hourly_usd: float) -> Measured:
    """Dollars for a million generated tokens."""
    return queries_per_usd(queries_per_s, hourly_usd).reciprocal().times(1e6 / output_tokens)


def cost_reduction(queries_per_usd: Mapping[str, Measured], base: Mapping[str, Measured]) -> Measured | None:
    """Mean over workloads of queries per dollar against the base's, each on the GPUs it needs; None: none in common."""
    return mean_ratio(queries_per_usd, base)


def speedup(queries_per_s: Mapping[str, Measured], base: Mapping[str, Measured]) -> Measured | None:
    """Mean over workloads of the throughput against the base's on equal hardware; None: none in common."""
    return mean_ratio(queries_per_s, base)
