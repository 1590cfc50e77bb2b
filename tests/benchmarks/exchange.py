"""Start of an engine and exchange of its weights: ``python -m tests.benchmarks.exchange FIRST SECOND``.

FIRST and SECOND are checkpoints of one family, that is of one model in one format.  Each start is a process of its
own over one cache that is empty before: SECOND cold, SECOND again, FIRST (which finds what SECOND's start compiled),
and in that process SECOND in FIRST's place and FIRST back.  The same prompts are scored and answered each time; two
fresh engines of one checkpoint say how equal an exchange can be.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NUM_CONTEXTS, CONTEXT_TOKENS, CHOICE_TOKENS = 48, 192, 24
NUM_TEXTS, TEXT_TOKENS = 16, 48
VOCABULARY = (100, 20_000)  # ordinary tokens of any model
PRESSURE_GIB = 1.0
Facts = dict[str, Any]


def main() -> None:
    """Print a line as each thing is known, and one table of all, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--budget-s", type=float, default=460.0, help="no start begins later")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--eager", action="store_true", help="neither graphs nor compilation")
    parser.add_argument("--anyway", action="store_true", help="also behind kernels that nobody has tried")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY[1], help="tokens below are asked")
    parser.add_argument("--out", type=Path, help="keep the table here as well")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _Child(options).run()
        return
    table = _measured(options)
    text = json.dumps(table, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


def _measured(options: argparse.Namespace) -> list[Facts]:
    """The rows: what was done, its seconds, and how many answers differ from a fresh engine's."""
    rows: list[Facts] = []
    until = time.monotonic() + options.budget_s
    with TemporaryDirectory(prefix="exchange_") as directory:
        seen: dict[str, Facts] = {}
        for name in ("second cold", "second warm", "first, exchanged, and back"):
            if time.monotonic() > until:
                rows.append(_said({"what": name, "error": "no time left"}))
                continue
            for row in _started(name, options, Path(directory), until):
                seen[row["what"]] = row
                rows.append(_said(_compared(row, seen)))
    return rows


def _said(row: Facts) -> Facts:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _started(name: str, options: argparse.Namespace, directory: Path, until: float) -> list[Facts]:
    """What a process of its own says."""
    out = directory / f"{name.replace(' ', '_').replace(',', '')}.jsonl"
    given = [str(options.first), str(options.second), "--max-model-len", str(options.max_model_len)]
    given += ["--vocabulary", str(options.vocabulary), "--child", name, "--out", str(out)]
    given += ["--eager"] * options.eager + ["--anyway"] * options.anyway
    caches = {"XDG_CACHE_HOME": "cache", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    environment = {**os.environ, **{variable: str(directory / place) for variable, place in caches.items()}}
    began, error = time.monotonic(), None
    try:
        command = [sys.executable, "-m", "tests.benchmarks.exchange", *given]
        limit_s = max(60.0, until - began + 120)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
        error = None if done.returncode == 0 else f"exit {done.returncode}: {done.stderr[-1500:]}"
    except subprocess.TimeoutExpired:
        error = f"not done after {limit_s:.0f} s"
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if error:
        rows.append({"what": name, "error": error})
    rows.append({"what": f"{name}: whole process", "seconds": round(time.monotonic() - began, 1)})
    return rows


def _compared(row: Facts, seen: Mapping[str, Facts]) -> Facts:
    """A row without its answers, but with how many of them differ from those of a fresh engine."""
    against = {
        "second warm": "second cold",
        "first": "second warm",  # another model: they must differ
        "second in place of first": "second warm",
        "second in place of first, memory filled": "second warm",
        "first back": "first",
    }
    shown = {key: value for key, value in row.items() if key not in ("answers", "digests")}
    other = seen.get(against.get(row["what"], ""))
    if other is not None and "answers" in row and "answers" in other:
        shown["against"] = other["what"]
        for kind, values in row["answers"].items():
            differing = [index for index, value in enumerate(values) if value != other["answers"][kind][index]]
            shown[f"{kind}_differing"] = f"{len(differing)} of {len(values)}"
        pairs = zip(row["answers"]["logprobs"], other["answers"]["logprobs"], strict=True)
        shown["largest_logprob_difference"] = max(abs(one - two) for one, two in pairs)
        digests = row["digests"], other["digests"]
        names = {name for name in {*digests[0], *digests[1]} if digests[0].get(name) != digests[1].get(name)}
        shown["kernel_tensors_differing"] = f"{len(names)} of {len(digests[0])}"
    return shown


class _Child:
    """One process: it opens an engine, and perhaps exchanges what is in it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._out: Path = options.out

    def run(self) -> None:
        from stages.evaluate.config import EngineConfig
        from stages.evaluate.session import open_engine

        began = time.monotonic()
        import vllm  # noqa: F401

        import_s = round(time.monotonic() - began, 2)
        import torch

        on_gpu = torch.cuda.is_available()
        config = EngineConfig(
            dtype="bfloat16",
            max_model_len=self._options.max_model_len,
            on_gpu=on_gpu,
            enforce_eager=self._options.eager,
            kv_cache_gib=None if on_gpu else 0.5,
            max_num_seqs=None if on_gpu else 8,
        )
        if self._options.anyway:
            import stages.evaluate.engines.vllm_engine as module

            module.check_supported = lambda *given: None
        name, first, second = self._options.child, self._options.first, self._options.second
        opened = first if name.startswith("first") else second
        read_s = self._timed(lambda: _digested(opened))
        began = time.monotonic()
        self._engine = open_engine(opened, config)
        open_s = round(time.monotonic() - began, 2)
        what = "first" if opened == first else name
        started = {
            "import_s": import_s,
            "read_s": read_s,
            "open_s": open_s,
            "arithmetic": dict(self._engine.arithmetic),
        }
        self._write(what, started | {"memory_gib": _memory_gib()})
        if opened == first:
            self._exchange("second in place of first", second)
            self._write("second in place of first, memory filled", {"filled_gib": _fill_memory()})
            self._exchange("first back", first)
        self._engine.close()

    def _exchange(self, what: str, checkpoint: Path) -> None:
        from stages.evaluate.engines.family import family

        facts: Facts = {"read_s": self._timed(lambda: _digested(checkpoint))}
        facts["family_s"] = self._timed(lambda: family(checkpoint))
        facts["is_family"] = family(checkpoint) == family(self._options.first)
        facts["exchange_s"] = self._timed(lambda: self._engine.replace(checkpoint))
        self._write(what, facts | {"memory_gib": _memory_gib()})

    def _write(self, what: str, facts: Facts) -> None:
        """One line: facts, and what the engine answers now; an error in place of answers that did not come."""
        try:
            began = time.monotonic()
            facts |= {"answers": self._answers(), "answers_s": round(time.monotonic() - began, 2)}
            facts["digests"] = self._digests()
        except Exception:
            facts["error"] = traceback.format_exc()[-800:]
        with self._out.open("a") as lines:
            lines.write(json.dumps({"what": what, **facts}) + "\n")

    def _answers(self) -> Facts:
        from stages.evaluate.engines.protocol import GenerateRequest, ScoreRequest

        tokens = _tokens(self._options.vocabulary)
        scored = [
            ScoreRequest(tokens(CONTEXT_TOKENS), tokens(1 if index % 2 else CHOICE_TOKENS))
            for index in range(NUM_CONTEXTS)
        ]
        written = [GenerateRequest(tokens(64), TEXT_TOKENS) for _ in range(NUM_TEXTS)]
        self._engine.reset()
        scores = self._engine.loglikelihood(scored)
        self._engine.reset()
        texts = self._engine.generate(written)
        return {"logprobs": [score.logprob for score in scores], "texts": [answer.text for answer in texts]}

    def _digests(self) -> dict[str, str]:
        found: list[dict[str, str]] = self._engine._llm.apply_model(_digests_of)  # type: ignore[attr-defined]
        return found[0]

    @staticmethod
    def _timed(function: Callable[[], Any]) -> float:
        began = time.monotonic()
        function()
        return round(time.monotonic() - began, 2)


def _tokens(vocabulary: int) -> Callable[[int], tuple[int, ...]]:
    import random

    numbers = random.Random(0)
    return lambda number: tuple(
        numbers.randrange(min(VOCABULARY[0], vocabulary // 2), vocabulary) for _ in range(number)
    )


def _digests_of(model: Any) -> dict[str, str]:
    """Of every parameter's bytes, in the engine's process."""
    import torch

    def digest(tensor: Any) -> str:
        plain = tensor.detach().cpu().contiguous().view(-1)
        return hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()

    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.numel()}
    with ThreadPoolExecutor(8) as threads:
        return dict(zip(parameters, threads.map(digest, parameters.values()), strict=True))


def _digested(checkpoint: Path) -> list[str]:
    """As a run does before it opens a checkpoint, which also brings the files into memory."""

    def digest(path: Path) -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    with ThreadPoolExecutor() as readers:
        return list(readers.map(digest, sorted(path for path in checkpoint.iterdir() if path.is_file())))


def _memory_gib() -> float | None:
    from stages.gpu import read_gpus

    states = read_gpus(1)
    return None if not states else round(states[0].memory_used_mib / 1024, 2)


def _fill_memory() -> float:
    """Write over memory that the exchange gave back, so that whoever still reads it is found out."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    free_bytes, _ = torch.cuda.mem_get_info()
    number = min(int(PRESSURE_GIB * 2**30), free_bytes // 2)
    held = torch.full((number,), 0xA5, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    del held
    torch.cuda.empty_cache()
    return round(number / 2**30, 2)


if __name__ == "__main__":
    main()
