"""GPTQ's second moments on a GPU's tensor cores, as exact as in float32 and many times faster."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def tensor_core_hessians() -> Iterator[None]:
    """Within it llm-compressor's GPTQ multiplies BF16 inputs as they are, and sums in float32.

    It multiplies them by the square root of two first, which BF16 cannot hold, and so needs a float32 product.  The
    factor behind the product makes every factor exact; half of the time of a large model's calibration is this one
    product.
    """
    import torch
    from llmcompressor.modifiers.gptq import base

    plain = base.accumulate_hessian

    def accumulate(inputs: Any, module: Any, hessian: Any, num_samples: Any) -> Any:
        if not (inputs.is_cuda and inputs.dtype is torch.bfloat16 and isinstance(module, torch.nn.Linear)):
            return plain(inputs, module, hessian, num_samples)
        num_samples += inputs.shape[0] if inputs.dim() > 2 else 1
        rows = inputs.reshape(-1, inputs.shape[-1]).to(hessian.device)
        return hessian.add_(torch.mm(rows.t(), rows, out_dtype=torch.float32), alpha=2), num_samples

    base.accumulate_hessian = accumulate
    try:
        yield
    finally:
        base.accumulate_hessian = plain
