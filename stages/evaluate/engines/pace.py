"""Whether an open engine computes at the pace of its machine: a kernel a hundred times too slow would take days.

One dense product of the model's own shape says what this processor can do, and a request of a few tokens what the
engine does.  (FP8 products of one build run at 0.02 GFLOP/s where dense ones reach 50.)
"""

import time
from collections.abc import Callable
from pathlib import Path

from stages.checkpoints.shape import ModelShape, num_parameters
from stages.errors import ConfigError

NUM_TOKENS = 4  # enough to see a slow kernel, few enough to wait for one
TOO_SLOW = 100
ENOUGH_S = 0.02  # of dense products, to see one that nothing interrupts
NOISE_S = 1.0  # what a busy machine may take for next to nothing


def expected_s(shape: ModelShape, dtype: str, num_tokens: int = NUM_TOKENS) -> float:
    """Seconds for one step of ``num_tokens`` at the rate of dense products here."""
    import torch

    kind = getattr(torch, dtype)
    inputs = torch.ones(num_tokens, shape.hidden_size, dtype=kind)
    weight = torch.ones(shape.hidden_size, shape.intermediate_size, dtype=kind)
    _seconds(lambda: inputs @ weight)  # the first one prepares
    fastest_s, spent_s = float("inf"), 0.0
    while spent_s < ENOUGH_S:
        took_s = _seconds(lambda: inputs @ weight)
        fastest_s, spent_s = min(fastest_s, took_s), spent_s + took_s
    return fastest_s * num_parameters(shape) / int(weight.numel())


def check_pace(checkpoint: Path, dtype: str, step: Callable[[int], object]) -> None:
    """Run ``step`` of so many tokens; raises ConfigError where it takes a hundred times what dense products would."""
    shape = ModelShape.from_config(checkpoint / "config.json")
    if shape is None:  # of another architecture: nothing is known to expect
        return
    expected = expected_s(shape, dtype)
    limit_s = max(TOO_SLOW * expected, NOISE_S)
    took_s = _seconds(lambda: step(NUM_TOKENS))
    if took_s > limit_s:  # the first step of an engine prepares as well
        took_s = min(took_s, _seconds(lambda: step(NUM_TOKENS)))
    if took_s > limit_s:
        raise ConfigError(
            f"{checkpoint.name}: a step of {NUM_TOKENS} tokens took {took_s:.1f} s where dense products take "
            f"{expected:.3f} s: vLLM's kernel for this format is too slow on this processor; choose another "
            "engine.dtype, engine=transformers, or run on a GPU"
        )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
