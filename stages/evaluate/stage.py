"""Answer and score a range of documents of one lm-eval task with one checkpoint; every response and metric is kept.

The prompts, filters and metrics are lm-eval's own; the engine that answers is ours (``engines/``).  One open
session serves every shard of a checkpoint, and a shard's bytes do not depend on what the session answered before.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stages.errors import DataError
from stages.evaluate.artifact import Sample, TaskFacts, write_evaluation
from stages.evaluate.config import EngineConfig, EngineKind, EvaluateConfig, PromptConfig
from stages.evaluate.harness import BuiltTask
from stages.evaluate.nltk_data import provide_nltk_data
from stages.evaluate.scoring import metric_facts, score
from stages.evaluate.session import Session, build_task, open_engine
from stages.evaluate.task_index import task_roots

if TYPE_CHECKING:
    from stages.evaluate.engines.harness_model import HarnessModel

VERSION = 3
VLLM_MAX_NUM_SEQS = 256  # vLLM's own default


def session_key(config: EvaluateConfig) -> str:
    """Canonical text of the settings that define one open engine; steps with the same key and checkpoint share it."""
    settings = asdict(config.engine) | {"kind": config.engine.kind.name}
    return json.dumps(settings, sort_keys=True)


def smaller(config: EvaluateConfig) -> EvaluateConfig | None:
    """Half as many sequences at once; None when there is only one.  Their number is not identity."""
    engine = config.engine
    sequences = engine.max_num_seqs or VLLM_MAX_NUM_SEQS
    if max(sequences, engine.batch_size) == 1:
        return None
    shrunk = replace(engine, max_num_seqs=max(1, sequences // 2), batch_size=max(1, engine.batch_size // 2))
    return replace(config, engine=shrunk)


def prepare(config: EvaluateConfig) -> None:
    """Import what an engine and its tasks need: some 20 s that a GPU need not wait for."""
    if config.engine.kind is EngineKind.vllm:
        from stages.evaluate.engines.process_state import set_environment

        set_environment()
        from vllm import LLM  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


@contextmanager
def open_session(config: EvaluateConfig, inputs: Mapping[str, Path]) -> Iterator[Session]:
    """Load ``inputs["checkpoint"]`` into the engine that ``config.engine`` describes; released at the end.

    Raises EngineError when the engine does not start.
    """
    with TemporaryDirectory(prefix="evaluate_") as work_dir:
        checkpoint, engine = inputs["checkpoint"], config.engine
        model = _open_model(checkpoint, engine, Path(work_dir))
        # What is wrong with the first shard's task is said before the engine, which takes a minute, is paid.
        build_task(config, _data(inputs), model, Path(work_dir) / "first")
        opened = open_engine(checkpoint, engine)
        session = Session(model, opened, checkpoint, Path(work_dir), engine.overlap_shards)
        try:
            yield session
        finally:
            session.close()


def announce(config: EvaluateConfig, inputs: Mapping[str, Path], session: Session) -> None:
    """Begin with a shard while an earlier one is still being scored."""
    session.announce(config, inputs["checkpoint"], _data(inputs))


def exchange(inputs: Mapping[str, Path], session: Session) -> None:
    """Put ``inputs["checkpoint"]`` in the place of the one that the session was opened with.

    Raises StageError where only a new session will do; this one must be closed then.
    """
    session.exchange(inputs["checkpoint"])


def evaluate(
    config: EvaluateConfig, inputs: Mapping[str, Path], out: Path, session: Session
) -> Mapping[str, float | None]:
    """Write ``samples.parquet`` and ``task.json``; metrics count documents, missing and truncated ones, and tokens.

    Raises ConfigError or DataError when no document could be answered under this config, EngineError when the engine
    died: a shard is whole or it is not there.
    """
    answered = session.answered(config, _data(inputs))
    task = answered.built.task
    samples = score(task, answered.documents, answered.answers)
    _check_some_scored(config.task, samples)
    facts = _task_facts(config, answered.built, samples, session)
    write_evaluation(out, samples, facts)
    return {
        "num_documents": len(samples),
        "num_missing": sum(sample.error is not None for sample in samples),
        "num_truncated": sum(sample.truncated for sample in samples),
        "num_prompt_tokens": sum(sample.num_prompt_tokens for sample in samples),
        "num_output_tokens": sum(sample.num_output_tokens for sample in samples),
    }


def _open_model(checkpoint: Path, config: EngineConfig, work_dir: Path) -> "HarnessModel":
    from transformers import AutoTokenizer

    from stages.evaluate.engines.harness_model import HarnessModel

    provide_nltk_data(work_dir)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.model_max_length = sys.maxsize  # prompts are cut here, not warned about there
    return HarnessModel(tokenizer, config.max_model_len, config.seed)


def _data(inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Data sets by hub id."""
    return {name.removeprefix("data:"): path for name, path in inputs.items() if name.startswith("data:")}


def _check_some_scored(task: str, samples: Sequence[Sample]) -> None:
    """A task that scores nothing is broken; a single document may be."""
    if len(samples) > 1 and all(sample.error is not None for sample in samples):
        raise DataError(f"task {task}: none of {len(samples)} documents could be scored; the first: {samples[0].error}")


def _system_role(prompt: PromptConfig, model: "HarnessModel") -> str | None:
    """Where what a system message says stands in the prompts."""
    if not prompt.apply_chat_template:
        return None
    if model.takes_system:
        return "system message"
    return "left out, as lm-eval does" if prompt.harness_compat else "first turn of the user"


def _task_facts(config: EvaluateConfig, built: BuiltTask, samples: Sequence[Sample], session: Session) -> TaskFacts:
    task, prompt = built.task, config.prompt
    seen = [name for sample in samples for name in sample.metrics]
    template = session.model.tokenizer.get_chat_template() if prompt.apply_chat_template else None
    return TaskFacts(
        task=config.task,
        version=task.VERSION,
        output_type=task.OUTPUT_TYPE,
        num_docs=built.num_docs,
        metrics=metric_facts(task, task_roots(config.include_paths), seen),
        scoring=dict(session.engine.scoring),
        arithmetic=dict(session.engine.arithmetic),
        comparable={
            **session.engine.facts,
            "dtype": config.engine.dtype,
            "max_model_len": config.engine.max_model_len,
            "chat_template_digest": template and hashlib.sha256(template.encode()).hexdigest(),
            "apply_chat_template": prompt.apply_chat_template,
            "system_role": _system_role(prompt, session.model),
            "fewshot_as_multiturn": prompt.fewshot_as_multiturn,
            "system_instruction": prompt.system_instruction,
            "num_fewshot": built.num_fewshot,
            "gen_kwargs": task.get_config("generation_kwargs") if task.OUTPUT_TYPE == "generate_until" else None,
            "fewshot_seed": prompt.fewshot_seed,
            "harness_compat": prompt.harness_compat,
            "harness": config.harness,
        },
    )
