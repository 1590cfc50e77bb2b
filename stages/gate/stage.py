"""Refuse a quantized checkpoint that is damaged, incomplete or talks nonsense, before anything is evaluated on it."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

from stages.checkpoints.intent import read_intent
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

VERSION = 3
FORETOLD = "compressed-tensors"  # the form whose tensors the gate foretells
_OF_FILES = {
    "files_readable",
    "targeted_layers_quantized",
    "other_tensors_untouched",
    "scales_finite_positive",
    "weights_finite",
    "weights_close",
    "tensors_present",
    "tensors_kept",
    "size_ratio",
    "model_loads",
}


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
        is_published = read_described(inputs["checkpoint"]) is not None
        raise CheckpointError(f"the checkpoint fails its gate: {reasons}; {_remedy(failed, is_published)}")
    values = {check.name: check.value for check in checks}
    return {name: values.get(name) for name in ("mean_kl", "top1_agreement", "size_ratio", "noise_kl")}


def _remedy(failed: Sequence[Check], is_published: bool) -> str:
    """By where the fault lies: a damaged file is no fault of the recipe, and a base's is none of the checkpoint."""
    names = {check.name for check in failed}
    if any("take another base" in check.detail for check in failed):
        return "nothing that is made of this base computes"
    if is_published:
        return "fetch it again, or take another checkpoint"
    if names & _OF_FILES:
        return "the files are damaged or incomplete: make or fetch them again"
    return "the files are whole, so it is the recipe that this model does not bear: change it"


def _run_checks(config: GateConfig, inputs: Mapping[str, Path]) -> Iterator[Check]:
    """Checks in order; a part that cannot be read fails the one check that says why, and the rest go on."""
    checkpoint_dir, described = inputs["checkpoint"], read_described(inputs["checkpoint"])
    try:
        is_loadable = yield from _check_files(config, inputs)
    except CheckpointError as error:
        yield Check("files_readable", False, detail=str(error))
        return
    if not is_loadable:
        return
    try:
        check_method(FORETOLD if described is None else described.method)
    except ConfigError as error:
        yield Check("model_loads", None, detail=f"not looked at: {error}")
        return
    base = _base(config, inputs)
    try:
        checkpoint = observed(checkpoint_dir, config.num_probe_tokens)
    except (RuntimeError, ValueError, KeyError, OSError, CheckpointError) as error:
        yield Check("model_loads", False, detail=str(error).split("\n")[0])
        return
    yield Check("model_loads", True)
    yield check_logits(checkpoint)
    yield check_loss(base, checkpoint, config.max_lost)
    yield check_answers(base, checkpoint, config.max_degenerate)
    yield from check_divergence(base, checkpoint, config.max_mean_kl)
    yield from check_noise(checkpoint)


def _check_files(config: GateConfig, inputs: Mapping[str, Path]) -> Generator[Check, None, bool]:
    """Without a forward pass: against what compressed-tensors foretells; of another form, against the base alone.

    Returns whether a loader would take them.
    """
    described = read_described(inputs["checkpoint"])
    if described is not None and described.method != FORETOLD:
        yield from check_published(inputs["base"], inputs["checkpoint"])
        return True
    intent = read_intent(inputs["checkpoint"], needs_recipe=described is None)
    files = read_files(inputs["base"], inputs["checkpoint"], intent)
    yield Check("files_readable", True)
    yield from check_weights(files, config.max_size_deviation)
    return not files.unlike


def _base(config: GateConfig, inputs: Mapping[str, Path]) -> Behaviour:
    """What the base was observed to do; looked at again where that was on another kind of device."""
    known = read_behaviour(inputs["observed"])
    return known if known.device == device() else observed(inputs["base"], config.num_probe_tokens)
