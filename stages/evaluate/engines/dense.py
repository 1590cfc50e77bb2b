"""A dense copy of a weight-only quantized checkpoint, for a vLLM that has no kernel for packed weights.

vLLM's CPU build multiplies by packed 4-bit weights only on AVX512, and not in float32.  Weight-only kernels multiply by
the dequantized weight, so the dense copy answers as the format does; it says nothing of its speed or memory.
"""

import json
import shutil
from pathlib import Path

from stages.checkpoints.formats import format_of
from stages.errors import CheckpointError

_LEFT_OVER = (
    "weight_scale",
    "weight_global_scale",
    "weight_shape",
    "weight_packed",
    "weight_zero_point",
    "weight_g_idx",
)


def lacks_kernel(checkpoint: Path, dtype: str) -> bool:
    """Whether vLLM, on this CPU, cannot multiply activations of ``dtype`` by the checkpoint's packed weights."""
    try:
        found = format_of(json.loads((checkpoint / "config.json").read_text()))
    except CheckpointError:
        return False  # a format of another method is vLLM's to judge
    if found is None or found.activations is not None:
        return False
    is_int4 = (found.weights.type, found.weights.num_bits) == ("int", 4)
    return dtype == "float32" or not (is_int4 and _has_kernel())


def _has_kernel() -> bool:
    """Of 4-bit integers, the only packed weights that vLLM's CPU build multiplies by."""
    import torch
    from vllm.platforms import current_platform

    current_platform.import_kernels()  # or the answer would depend on what this process ran before
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def write_dense_copy(checkpoint: Path, out: Path) -> None:
    """Write ``checkpoint`` into the empty directory ``out``, every weight dequantized, in the dtype it was saved in."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    settings = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", quantization_config=settings)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_LEFT_OVER)}
    config = json.loads((checkpoint / "config.json").read_text())
    del config["quantization_config"]
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    for path in checkpoint.iterdir():
        if path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.startswith(
            ("config", "model.", "manifest")
        ):
            shutil.copy2(path, out / path.name)
