"""Refuse a quantized checkpoint that is damaged, incomplete or talks nonsense, before anything is evaluated on it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.errors import CheckpointError
from stages.gate.artifact import Check, write_checks
from stages.gate.behaviour import check_answers, check_divergence, check_logits, check_loss, observe
from stages.gate.config import GateConfig
from stages.gate.weights import check_weights, read_files

VERSION = 1


def gate(config: GateConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``gate.json``, every check with what was found and expected.

    Metrics ``mean_kl`` (nats per token), ``top1_agreement``, ``size_ratio`` (bytes / base bytes).
    Raises CheckpointError naming the checks that failed.
    """
    checks = list(_run_checks(config, inputs["base"], inputs["checkpoint"]))
    write_checks(out, checks)
    failed = [check for check in checks if not check.passed]
    if failed:
        reasons = "; ".join(f"{check.name} ({check.detail})" for check in failed)
        raise CheckpointError(f"the checkpoint fails its gate: {reasons}; quantize again or change the recipe")
    values = {check.name: check.value for check in checks}
    return {name: values[name] for name in ("mean_kl", "top1_agreement", "size_ratio")}


def _run_checks(config: GateConfig, base_dir: Path, checkpoint_dir: Path) -> Iterator[Check]:
    """Checks in order; a part that cannot be read fails the one check that says why, and the rest go on."""
    try:
        files = read_files(base_dir, checkpoint_dir)
    except CheckpointError as error:
        yield Check("files_readable", False, detail=str(error))
        return
    yield Check("files_readable", True)
    yield from check_weights(files, config.max_size_deviation)
    base = observe(base_dir, config.num_probe_tokens)
    try:
        checkpoint = observe(checkpoint_dir, config.num_probe_tokens)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        yield Check("model_loads", False, detail=str(error).split("\n")[0])
        return
    yield Check("model_loads", True)
    yield check_logits(checkpoint)
    yield check_loss(base, checkpoint, config.max_lost)
    yield check_answers(base, checkpoint, config.max_degenerate)
    yield from check_divergence(base, checkpoint, config.max_mean_kl)
