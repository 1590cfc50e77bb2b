"""What serving is paid for: GPUs with their prices, mixes of workloads, and latency objectives."""

from dataclasses import dataclass

from stages.fields import identity


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


@dataclass(kw_only=True, slots=True)
class ServingConfig:
    """What costs are computed from, beside the points: prices, mixes of workloads, and latency objectives."""

    gpus: list[GpuConfig] = identity()
    gpu_of: dict[str, str] = identity()  # trial -> name of its GPU
    mixes: dict[str, dict[str, float]] = identity(factory=dict)
    slo_itl_ms: float | None = identity(None)
    slo_ttft_ms: float | None = identity(None)
