"""What is looked at in a base, and what a gate lets through."""

from dataclasses import dataclass

from stages.fields import identity


@dataclass(kw_only=True, slots=True)
class ObserveConfig:
    """How long the answers to the probes are."""

    num_probe_tokens: int = identity(32)


@dataclass(kw_only=True, slots=True)
class GateConfig:
    """Thresholds.  Divergence and agreement are always reported; a divergence fails only with a threshold."""

    max_mean_kl: float | None = identity(None)  # nats per token
    max_size_deviation: float = identity(0.02)  # of the size that the recipe leads one to expect
    max_lost: float = identity(0.5)  # share of the base's advantage over uniform guessing, in nats per token
    max_degenerate: float = identity(0.5)  # share of the probes that the base answers properly
    num_probe_tokens: int = identity(32)

    def __post_init__(self) -> None:
        if self.num_probe_tokens < 1:
            raise ValueError(f"gate.num_probe_tokens must be at least 1; got {self.num_probe_tokens}")
