"""Ask a checkpoint a range of documents of one lm-eval task, and keep what it answers as it came.

The prompts are lm-eval's own; the engine that answers is ours (``engines/``).  One open session serves every shard of a
checkpoint, and a shard's bytes do not depend on what the session answered before.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.errors import DataError
from stages.evaluate.answers import Answered, AnswerFacts, is_any, total, write_answers
from stages.evaluate.builders import builder_beside
from stages.evaluate.building import Asked, build_task, open_model
from stages.evaluate.config import AnswerConfig, EngineConfig, EngineKind, PromptConfig
from stages.evaluate.engines.native import check_arithmetic
from stages.evaluate.harness import data_sets
from stages.evaluate.recorded.session import RecordedSession, open_run
from stages.evaluate.session import Session, open_engine
from stages.imports import no_collection

if TYPE_CHECKING:
    from stages.evaluate.engines.harness_model import HarnessModel

VERSION = 1
AnySession = Session | RecordedSession


def session_key(config: AnswerConfig) -> str:
    """Canonical text of the settings that define one open engine; steps with the same key and checkpoint share it."""
    settings = asdict(config.engine) | {"kind": config.engine.kind.name}
    return json.dumps(settings, sort_keys=True)


def smaller(config: AnswerConfig) -> AnswerConfig | None:
    """Half as many sequences at once; None when there is only one.  Their number is not identity."""
    engine = config.engine
    sequences = engine.num_at_once
    if max(sequences, engine.batch_size) == 1:
        return None
    shrunk = replace(engine, max_num_seqs=max(1, sequences // 2), batch_size=max(1, engine.batch_size // 2))
    return replace(config, engine=shrunk)


def prepare(config: AnswerConfig) -> None:
    """Import what an engine and its tasks need: some 20 s that a GPU need not wait for."""
    with no_collection():
        if config.engine.kind is EngineKind.vllm:
            from stages.evaluate.engines.process_state import set_environment

            set_environment()
            from vllm import LLM  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


@contextmanager
def open_session(config: AnswerConfig, inputs: Mapping[str, Path]) -> Iterator[AnySession]:
    """Load ``inputs["checkpoint"]`` into the engine that ``config.engine`` describes; released at the end.

    Raises EngineError when the engine does not start.
    """
    with TemporaryDirectory(prefix="evaluate_") as work_dir:
        checkpoint, engine = inputs["checkpoint"], config.engine
        model = open_model(checkpoint, engine, Path(work_dir))
        # What is wrong with the first shard's task is said before the engine, which takes a minute, is paid.
        build_task(config, data_sets(inputs), model, Path(work_dir) / "first")
        session = _opened(model, checkpoint, engine, Path(work_dir))
        try:
            check_arithmetic(config.effective, engine, session.engine.facts, session.engine.arithmetic, checkpoint)
            yield session
        finally:
            session.close()


def announce(config: AnswerConfig, inputs: Mapping[str, Path], session: AnySession) -> None:
    """Begin with a shard while an earlier one is still being answered."""
    session.announce(config, inputs["checkpoint"], data_sets(inputs))


def exchange(inputs: Mapping[str, Path], session: AnySession) -> None:
    """Put ``inputs["checkpoint"]`` in the place of the one that the session was opened with.

    Raises StageError where only a new session will do; this one must be closed then.
    """
    session.exchange(inputs["checkpoint"])


def answer(
    config: AnswerConfig, inputs: Mapping[str, Path], out: Path, session: AnySession
) -> Mapping[str, float | None]:
    """Write ``answers.parquet`` and ``answers.json``; metrics count documents, missing and truncated ones, and tokens.

    Raises ConfigError or DataError when no document could be asked under this config, EngineError when the engine
    died: a shard is whole or it is not there.
    """
    shard = session.answered(config, data_sets(inputs))
    answered = shard.documents
    _check_some_asked(config.task, answered)
    write_answers(out, answered, _facts(config, shard.asked, session))
    answers = [answer for each in answered for answer in each.answers]
    return {
        "num_documents": len(answered),
        "num_missing": sum(each.error is not None for each in answered),
        "num_truncated": total(is_any(answer.truncated for answer in each.answers) for each in answered),
        "num_prompt_tokens": total(answer.num_prompt_tokens for answer in answers),
        "num_output_tokens": total(answer.num_output_tokens for answer in answers),
    }


def _opened(model: "HarnessModel", checkpoint: Path, engine: EngineConfig, work_dir: Path) -> AnySession:
    if engine.is_recorded:
        return RecordedSession(model, open_run(engine), work_dir)
    builder = builder_beside(model, checkpoint, engine, work_dir)
    try:
        return Session(model, open_engine(checkpoint, engine), checkpoint, builder, engine.overlap_shards)
    except BaseException:
        builder.close()
        raise


def _check_some_asked(task: str, answered: Sequence[Answered]) -> None:
    """A task of which nothing can be asked is broken; a single document may be."""
    if len(answered) > 1 and all(each.error is not None for each in answered):
        raise DataError(
            f"task {task}: none of {len(answered)} documents could be asked; the first: {answered[0].error}"
        )


def _system_role(prompt: PromptConfig, model: "HarnessModel") -> str | None:
    """Where what a system message says stands in the prompts."""
    if not prompt.apply_chat_template:
        return None
    if model.chat.takes_system:
        return "system message"
    return "left out, as lm-eval does" if prompt.harness_compat else "first turn of the user"


def _engine_facts(config: EngineConfig, session: AnySession) -> dict[str, Any]:
    """What was set for the engine, but where it knows better itself: of a run that is over nothing is set here."""
    own = session.engine.facts
    return {**own, **{name: own.get(name, getattr(config, name)) for name in ("dtype", "max_model_len")}}


def _facts(config: AnswerConfig, asked: Asked, session: AnySession) -> AnswerFacts:
    prompt = config.prompt
    template = session.model.tokenizer.get_chat_template() if prompt.apply_chat_template else None
    return AnswerFacts(
        task=config.task,
        version=asked.version,
        output_type=asked.output_type,
        num_docs=asked.num_docs,
        reasoning=asked.reasoning,
        scoring=dict(session.engine.scoring),
        arithmetic=dict(session.engine.arithmetic),
        comparable={
            **_engine_facts(config.engine, session),
            "chat_template_digest": template and hashlib.sha256(template.encode()).hexdigest(),
            "apply_chat_template": prompt.apply_chat_template,
            "chat_template_kwargs": prompt.chat_template_kwargs,
            "reasoning_end": asked.reasoning and asked.reasoning.end,
            "system_role": _system_role(prompt, session.model),
            "fewshot_as_multiturn": prompt.fewshot_as_multiturn,
            "system_instruction": prompt.system_instruction,
            "num_fewshot": asked.num_fewshot,
            "gen_kwargs": asked.gen_kwargs,
            "num_repeats": asked.num_repeats,
            "fewshot_seed": prompt.fewshot_seed,
            "harness_compat": prompt.harness_compat,
            "harness": config.harness,
        },
    )
