"""Whether a checkpoint's weights are numbers: one that is none spoils everything that is made of it."""

from collections.abc import Iterator
from pathlib import Path

from stages.checkpoints.description import describe
from stages.errors import CheckpointError

_FLOATING = ("F16", "BF16", "F32", "F64")  # FP8 is stored with scales, which a gate looks at


def check_finite(model_dir: Path) -> None:
    """Raise CheckpointError, naming the first of them, where a tensor that is loaded holds NaN or infinity."""
    if bad := next(_not_finite(model_dir), None):
        raise CheckpointError(
            f"the source's weights hold NaN or infinity ({bad}): nothing that is made of them computes; fetch them "
            "again, or take another model"
        )


def _not_finite(model_dir: Path) -> Iterator[str]:
    """Names with what was found, in the order of the files, so that each is read from front to back."""
    import torch
    from safetensors import safe_open

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = describe(model_dir)
    infos = {name: info for name, info in model.infos.items() if name not in set(model.unread)}
    for file in dict.fromkeys(info.file for info in infos.values()):
        own = {name: info for name, info in infos.items() if info.file == file and info.dtype in _FLOATING}
        with safe_open(file, framework="pt", device=device) as tensors:
            for name in sorted(own, key=lambda name: own[name].offset):
                values = tensors.get_tensor(name)
                if num_bad := values.numel() - int(values.isfinite().sum()):
                    yield f"{name}, {num_bad:,} of {values.numel():,}"
