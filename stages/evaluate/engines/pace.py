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
NOISE_S = 1.0  # what a busy machine may take for next to nothing


def expected_s(shape: ModelShape, dtype: str, num_tokens: int = NUM_TOKENS) -> float:
    """Seconds for one step of ``num_tokens`` at the rate of a dense product here, the best of three."""
    import torch

    kind = getattr(torch, dtype)
    inputs = torch.ones(num_tokens, shape.hidden_size, dtype=kind)
    weight = torch.ones(shape.hidden_size, shape.intermediate_size, dtype=kind)
    seconds = min(_seconds(lambda: inputs @ weight) for _ in range(3))
    return seconds * num_parameters(shape) / int(weight.numel())


def check_pace(checkpoint: Path, dtype: str, step: Callable[[int], object]) -> None:
    """Run ``step`` of so many tokens; raises ConfigError where it takes a hundred times what dense products would."""
    try:
        shape = ModelShape.from_config(checkpoint / "config.json")
    except KeyError:  # of another architecture: nothing is known to expect
        return
    expected = expected_s(shape, dtype)
    took_s = _seconds(lambda: step(NUM_TOKENS))
    if took_s > max(TOO_SLOW * expected, NOISE_S):
        raise ConfigError(
            f"{checkpoint.name}: a step of {NUM_TOKENS} tokens took {took_s:.1f} s where dense products take "
            f"{expected:.3f} s: vLLM's kernel for this format is too slow on this processor; choose another "
            "engine.dtype, engine=transformers, or run on a GPU"
        )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
