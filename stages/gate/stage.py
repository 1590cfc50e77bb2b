"""Refuse a quantized checkpoint that is damaged, incomplete or talks nonsense, before anything is evaluated on it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.checkpoints.loadable import check_method
from stages.errors import CheckpointError, ConfigError
from stages.gate.artifact import Check, write_checks
from stages.gate.behaviour import (
    Behaviour,
    check_answers,
    check_divergence,
    check_logits,
    check_loss,
    check_noise,
    device,
    observed,
    read_behaviour,
)
from stages.gate.config import GateConfig
from stages.gate.published import check_published
from stages.gate.weights import check_weights, read_files
from stages.imports import no_collection
from stages.published import read_described

VERSION = 2
_TAKE_OTHER = "fetch it again, or take another checkpoint"


def prepare(config: GateConfig) -> None:
    """Import what takes longest, while somebody else has the GPU."""
    with no_collection():
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def gate(config: GateConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``gate.json``, every check with what was found and expected.

    ``inputs``: the ``base`` model, what it was ``observed`` to do, and the ``checkpoint`` made of it.
    Metrics ``mean_kl`` (nats per token), ``top1_agreement``, ``size_ratio`` (bytes / base bytes), ``noise_kl`` (nats
    per token, None of a checkpoint that rounds no inputs).
    Raises CheckpointError naming the checks that failed.
    """
    checks = list(_run_checks(config, inputs))
    write_checks(out, checks)
    failed = [check for check in checks if check.passed is False]
    if failed:
        reasons = "; ".join(f"{check.name} ({check.detail})" for check in failed)
        advice = "quantize again or change the recipe" if read_described(inputs["checkpoint"]) is None else _TAKE_OTHER
        raise CheckpointError(f"the checkpoint fails its gate: {reasons}; {advice}")
    values = {check.name: check.value for check in checks}
    return {name: values.get(name) for name in ("mean_kl", "top1_agreement", "size_ratio", "noise_kl")}


def _run_checks(config: GateConfig, inputs: Mapping[str, Path]) -> Iterator[Check]:
    """Checks in order; a part that cannot be read fails the one check that says why, and the rest go on."""
    checkpoint_dir, described = inputs["checkpoint"], read_described(inputs["checkpoint"])
    try:
        yield from _check_files(config, inputs)
    except CheckpointError as error:
        yield Check("files_readable", False, detail=str(error))
        return
    try:
        check_method("compressed-tensors" if described is None else described.method)
    except ConfigError as error:
        yield Check("model_loads", None, detail=f"not looked at: {error}")
        return
    base = _base(config, inputs)
    try:
        checkpoint = observed(checkpoint_dir, config.num_probe_tokens)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        yield Check("model_loads", False, detail=str(error).split("\n")[0])
        return
    yield Check("model_loads", True)
    yield check_logits(checkpoint)
    yield check_loss(base, checkpoint, config.max_lost)
    yield check_answers(base, checkpoint, config.max_degenerate)
    yield from check_divergence(base, checkpoint, config.max_mean_kl)
    yield from check_noise(checkpoint)


def _check_files(config: GateConfig, inputs: Mapping[str, Path]) -> Iterator[Check]:
    """Without a forward pass: what was made here is held against its recipe, what others made against its base."""
    if read_described(inputs["checkpoint"]) is not None:
        yield from check_published(inputs["base"], inputs["checkpoint"])
        return
    files = read_files(inputs["base"], inputs["checkpoint"])
    yield Check("files_readable", True)
    yield from check_weights(files, config.max_size_deviation)


def _base(config: GateConfig, inputs: Mapping[str, Path]) -> Behaviour:
    """What the base was observed to do; looked at again where that was on another kind of device."""
    known = read_behaviour(inputs["observed"])
    return known if known.device == device() else observed(inputs["base"], config.num_probe_tokens)
