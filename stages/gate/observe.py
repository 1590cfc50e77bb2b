"""Look at a base model once: the gates of all its recipes compare with what it did."""

from collections.abc import Mapping
from pathlib import Path

from stages.gate.behaviour import observed, write_behaviour
from stages.gate.config import ObserveConfig
from stages.imports import no_collection

VERSION = 1


def prepare(config: ObserveConfig) -> None:
    """Import what takes longest, while somebody else has the GPU."""
    with no_collection():
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def observe(config: ObserveConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write what ``inputs["model"]`` expects of held-out text and answers to the probes.

    Metric ``loss`` (nats per token of held-out text).
    """
    behaviour = observed(inputs["model"], config.num_probe_tokens)
    write_behaviour(out, behaviour)
    return {"loss": behaviour.finite_loss}
