"""Speed of simulated formats beside the dense model in the same engine: ``python -m tests.benchmarks.simulated``.

SmolLM2-135M by round-to-nearest, on the CPU of this machine, in both dtypes.  Choices are many contexts with four
continuations each, texts are written by 16 requests at a time; the formats take turns in every round.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.scoring import make_checkpoint

BASE = "bf16"
SCHEMES = {"w8a8_fp": "FP8_DYNAMIC", "w8a8_int": "W8A8", "w4a16_int": "W4A16"}
DTYPES = ("float32", "bfloat16")
NUM_CONTEXTS, CONTEXT_TOKENS, CHOICES, CHOICE_TOKENS = 24, 320, 4, 12
NUM_TEXTS, PROMPT_TOKENS, TEXT_TOKENS = 16, 64, 96
VOCABULARY = range(1000, 40000)  # ordinary tokens


def main() -> None:
    """Measure every format in turn and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--out", type=Path, help="keep the seconds of every round, as JSON")
    options = parser.parse_args()
    with TemporaryDirectory() as directory:
        checkpoints = make_checkpoints(Path(directory))
        rounds = [
            {"dtype": dtype, **{name: measure(path, dtype) for name, path in checkpoints.items()}}
            for dtype in options.dtypes
            for _ in range(options.rounds)
        ]
    content = {"cpu": cpu_name(), "rounds": rounds}
    if options.out:
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))


def make_checkpoints(directory: Path) -> dict[str, Path]:
    """The base and its formats, by name."""
    from stages.calibrate import CalibrationConfig, calibrate
    from stages.quantize import Algorithm, QuantizeConfig, RecipeConfig, quantize

    base, calibration = make_checkpoint("smollm2", directory), directory / "calibration"
    calibration.mkdir()
    calibrate(CalibrationConfig(num_calibration_samples=2, max_seq_length=64), {"model": base}, calibration)
    made = {BASE: base}
    for name, scheme in SCHEMES.items():
        made[name] = directory / name
        made[name].mkdir()
        group_size = 64 if scheme == "W4A16" else None
        recipe = RecipeConfig(name=name, algorithm=Algorithm.rtn, scheme=scheme, group_size=group_size)
        quantize(QuantizeConfig(recipe=recipe), {"model": base, "calibration": calibration}, made[name])
    return made


def measure(checkpoint: Path, dtype: str) -> dict[str, Any]:
    """Seconds of the choices and of the texts in an engine of its own, as ``engine=vllm_cpu`` opens it."""
    from stages.evaluate.config import EngineConfig
    from stages.evaluate.engines.vllm_engine import VllmEngine

    config = EngineConfig(dtype=dtype, max_model_len=1024, kv_cache_gib=1, on_gpu=False)
    engine = VllmEngine(checkpoint, config)
    try:
        choices, texts = requests(random.Random(0))
        engine.loglikelihood(choices[:CHOICES])
        engine.generate(texts[:1])
        seconds = {"choices_s": timed(engine, engine.loglikelihood, choices)}
        seconds["texts_s"] = timed(engine, engine.generate, texts)
        return {"arithmetic": engine.arithmetic["method"], **seconds}
    finally:
        engine.close()


def requests(source: random.Random) -> tuple[list[Any], list[Any]]:
    """Choices and texts over random ordinary tokens; no text ends before its last token is written."""
    from stages.evaluate.engines.protocol import GenerateRequest, ScoreRequest

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(source.choices(VOCABULARY, k=count))

    contexts = [tokens(CONTEXT_TOKENS) for _ in range(NUM_CONTEXTS)]
    choices = [ScoreRequest(context, tokens(CHOICE_TOKENS)) for context in contexts for _ in range(CHOICES)]
    to_the_end = (("ignore_eos", True),)
    texts = [GenerateRequest(tokens(PROMPT_TOKENS), TEXT_TOKENS, sampling=to_the_end) for _ in range(NUM_TEXTS)]
    return choices, texts


def timed(engine: Any, answer: Callable[[list[Any]], Any], asked: list[Any]) -> float:
    """Seconds to answer with an empty prefix cache."""
    engine.reset()
    started = time.perf_counter()
    answer(asked)
    return round(time.perf_counter() - started, 3)


def cpu_name() -> str:
    """The processor, and what of its instructions PyTorch may use."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def table(content: dict[str, Any]) -> str:
    """Medians over the rounds; speeds are the dense model's seconds over the format's of the same round."""
    lines = [
        "| dtype | format | arithmetic | choices, s | of the dense speed | texts, s | of the dense speed |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for dtype in dict.fromkeys(each["dtype"] for each in content["rounds"]):
        rounds = [each for each in content["rounds"] if each["dtype"] == dtype]
        lines += [_row(dtype, name, rounds) for name in (BASE, *SCHEMES)]
    return "\n".join(lines)


def _row(dtype: str, name: str, rounds: list[dict[str, Any]]) -> str:
    cells = [dtype, name, rounds[0][name]["arithmetic"]]
    for kind in ("choices_s", "texts_s"):
        speed = median(each[BASE][kind] / each[name][kind] for each in rounds)
        cells += [f"{median(each[name][kind] for each in rounds):.2f}", f"{speed:.0%}".replace("%", " %")]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
