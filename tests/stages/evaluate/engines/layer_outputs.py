"""What the linear layers of an open engine give for chosen inputs: ``layer_outputs.py CHECKPOINT DTYPE INPUTS OUTPUTS``.

``INPUTS`` holds a tensor (tokens, inputs) for each layer by its name in vLLM's model; run in a process of its own.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.evaluate.config import EngineConfig
from stages.evaluate.session import open_engine


def main(checkpoint: str, dtype: str, inputs_path: str, outputs_path: str) -> None:
    inputs = load_file(inputs_path)
    engine = open_engine(
        Path(checkpoint), EngineConfig(dtype=dtype, max_model_len=64, kv_cache_gib=0.1, max_num_seqs=4)
    )

    def outputs_of(model):
        return {name: model.get_submodule(name)(value.to(getattr(torch, dtype)))[0] for name, value in inputs.items()}

    with torch.inference_mode():
        (outputs,) = engine._llm.apply_model(outputs_of)
    save_file({name: value.float().contiguous() for name, value in outputs.items()}, outputs_path)
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
