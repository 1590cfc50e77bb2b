"""What a task slot asks of answers that cannot be, known before anything is paid.  Pure."""

from pipeline.config.schema import Config, TaskConfig
from pipeline.errors import UserError
from pipeline.planning.task_facts import TaskFacts

WRITES = "generate_until"


def check_answers_asked(config: Config, slot: str, task: TaskConfig, known: TaskFacts) -> None:
    """Raise UserError for repeats that would be one, scores of repeats that there are not, and no room to ask."""
    for leaf in known.leaves:
        _check_repeats(slot, task, known, leaf)
        _check_scores_of_repeats(slot, task, known, leaf)
        _check_room(config, slot, task, known, leaf)


def _check_repeats(slot: str, task: TaskConfig, known: TaskFacts, leaf: str) -> None:
    if (task.num_repeats or 1) == 1:
        return
    drawn = known.is_sampled[leaf] if task.is_sampled is None else task.is_sampled
    if known.output_types[leaf] not in (None, WRITES):
        what = "scores given texts"
    elif drawn is False:
        what = "is greedy"
    else:
        return
    raise UserError(
        f"tasks.{slot}: {leaf} {what}, so all {task.num_repeats} answers to a document would be one: leave num_repeats "
        "out, or set gen_kwargs.do_sample=true and gen_kwargs.temperature"
    )


def _check_scores_of_repeats(slot: str, task: TaskConfig, known: TaskFacts, leaf: str) -> None:
    num_repeats = task.num_repeats or known.repeats[leaf]
    asked = "pass_at" if task.pass_at else "majority" if task.majority else None
    if asked is None or num_repeats is None:
        return
    if num_repeats == 1:
        raise UserError(f"tasks.{slot}: {asked} needs several answers to a document: set num_repeats")
    if (most := max(task.pass_at, default=0)) > num_repeats:
        raise UserError(
            f"tasks.{slot}: pass_at={most} needs as many answers to a document, and {leaf} asks for {num_repeats}: "
            "raise num_repeats"
        )


def _check_room(config: Config, slot: str, task: TaskConfig, known: TaskFacts, leaf: str) -> None:
    most = known.output_tokens[leaf] if task.output_tokens is None else None
    most = most if task.asked_tokens is None else task.asked_tokens
    window = config.engine.max_model_len
    if known.output_types[leaf] == WRITES and most is not None and most >= window and not config.engine.is_recorded:
        raise UserError(
            f"tasks.{slot}: {leaf} may write {most} tokens, and engine.max_model_len={window} leaves no room for a "
            "prompt: raise it, or lower gen_kwargs.max_gen_toks"
        )
