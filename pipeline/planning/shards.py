"""Shards: how the documents of a leaf task are divided among evaluation steps, and what each of those asks."""

import itertools

from pipeline.config.schema import Config, TaskConfig
from pipeline.planning.task_facts import TaskFacts
from stages.evaluate.config import SIMULATION_VERSION, EngineKind, EvaluateConfig, PromptConfig
from stages.quantize import Algorithm


def shard_ranges(num_docs: int, task: TaskConfig) -> list[tuple[int, int]]:
    """A leaf without data still has a step, one that fails and says why."""
    return ranges(min(num_docs, task.limit or num_docs), task.shard_size) if num_docs else [(0, 1)]


def ranges(num_docs: int, shard_size: int) -> list[tuple[int, int]]:
    """Half-open document ranges that cover ``num_docs`` documents, as even as ``shard_size`` allows."""
    num_shards = -(-num_docs // shard_size)
    bounds = [num_docs * index // num_shards for index in range(num_shards + 1)]
    return list(itertools.pairwise(bounds))


def evaluate_config(
    config: Config, task: TaskConfig, leaf: str, known: TaskFacts, start: int, stop: int
) -> EvaluateConfig:
    """What the shard of documents ``start`` to ``stop`` is asked."""
    return EvaluateConfig(
        task=leaf,
        prompt=PromptConfig(
            num_fewshot=task.num_fewshot,
            apply_chat_template=task.apply_chat_template,
            fewshot_as_multiturn=task.fewshot_as_multiturn,
            system_instruction=task.system_instruction,
            gen_kwargs=task.gen_kwargs,
            fewshot_seed=task.fewshot_seed,
            harness_compat=task.harness_compat,
        ),
        overrides=dict(known.overrides[leaf]),
        start=start,
        stop=stop,
        num_docs=known.leaves[leaf],
        harness=known.harness[leaf],
        reads=list(known.reads[leaf]),
        include_paths=config.data.task_paths,
        engine=config.engine,
        simulation=SIMULATION_VERSION if _may_be_simulated(config) else None,
    )


def output_tokens(task: TaskConfig, known: TaskFacts, leaf: str) -> int | None:
    """The most tokens that an answer may have, 0 where choices are scored; None where it is not known."""
    if (found := known.output_tokens[leaf]) == 0:
        return 0
    return found if task.asked_tokens is None else task.asked_tokens


def _may_be_simulated(config: Config) -> bool:
    """Whether vLLM on a CPU answers with a quantized checkpoint; all other answers are as they always were."""
    is_on_cpu = config.engine.kind is EngineKind.vllm and not config.engine.on_gpu
    return is_on_cpu and config.recipe.algorithm is not Algorithm.none
