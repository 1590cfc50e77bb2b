"""Refuse a quantized checkpoint that is damaged, incomplete or talks nonsense, before anything is evaluated on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.fields import identity

VERSION = 1


@dataclass(kw_only=True, slots=True)
class GateConfig:
    """Thresholds.  Divergence and agreement are always reported; they fail a checkpoint only with a threshold."""

    max_mean_kl: float | None = identity(None)  # nats per token
    max_size_deviation: float = identity(0.02)  # of the size that the recipe leads one to expect
    num_probe_tokens: int = identity(48)


def gate(config: GateConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``gate.json``; metrics ``mean_kl`` (nats per token), ``top1_agreement``, ``size_ratio``.

    Raises CheckpointError naming every check that failed.
    """
    raise NotImplementedError
