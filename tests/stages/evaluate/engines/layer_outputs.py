"""What linear layers of open engines give for chosen inputs, in a process of its own: ``layer_outputs.py FOLDER``.

``FOLDER/jobs.json`` lists [checkpoint, dtype]; ``inputs.safetensors`` holds a tensor (tokens, inputs) for each layer by
its name in vLLM's model.  Writes ``0.safetensors``, ``1.safetensors``, ...: the outputs of each job.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.evaluate.config import EngineConfig
from stages.evaluate.session import open_engine


def main(folder: Path) -> None:
    inputs = load_file(folder / "inputs.safetensors")
    for number, (checkpoint, dtype) in enumerate(json.loads((folder / "jobs.json").read_text())):
        save_file(outputs(Path(checkpoint), dtype, inputs), folder / f"{number}.safetensors")


def outputs(checkpoint, dtype, inputs):
    config = EngineConfig(dtype=dtype, max_model_len=64, kv_cache_gib=0.1, max_num_seqs=4)
    engine = open_engine(checkpoint, config)

    def ask(model):
        of_dtype = {name: value.to(getattr(torch, dtype)) for name, value in inputs.items()}
        return {name: model.get_submodule(name)(value)[0].float().contiguous() for name, value in of_dtype.items()}

    with torch.inference_mode():
        (found,) = engine._llm.apply_model(ask)
    engine.close()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
