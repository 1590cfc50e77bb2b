"""Both steps of an evaluation in one call, for tests that look at what comes out in the end."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.evaluate.answer import answer
from stages.evaluate.config import AnswerConfig, LeafConfig, ScoreConfig, ScoringConfig
from stages.evaluate.score import score


def evaluate(
    config: AnswerConfig, inputs: Mapping[str, Path], out: Path, session: Any, **scoring: Any
) -> Mapping[str, float | None]:
    """Answer a shard and score it into ``out``; the metrics of both, those of the scores last."""
    with TemporaryDirectory() as answers_dir:
        metrics = answer(config, inputs, Path(answers_dir), session)
        return {
            **metrics,
            **score(score_config(config, **scoring), {f"{config.task}/0000": Path(answers_dir), **inputs}, out),
        }


def score_config(config: AnswerConfig, **scoring: Any) -> ScoreConfig:
    """How answers to that shard are scored."""
    leaf = LeafConfig(task=config.task, overrides=config.overrides | config.scoring_overrides, harness=config.harness)
    return ScoreConfig(
        leaves=[leaf],
        scoring=ScoringConfig(**scoring),
        harness_compat=config.prompt.harness_compat,
        include_paths=config.include_paths,
    )
