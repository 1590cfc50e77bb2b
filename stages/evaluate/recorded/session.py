"""Answers that lm-eval has written down: found again by document and prompt, and refused where they are of others.

Nothing is asked: what a session needs is the tokenizer, for the prompts that were to be answered.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import ConfigError, EngineError
from stages.evaluate.building import Tasks, answered, asked
from stages.evaluate.recorded.artifact import RecordedRun, read_run, repeats_apart
from stages.evaluate.recorded.samples import SamplesFile, recorded_answers
from stages.evaluate.session import AnsweredShard

if TYPE_CHECKING:
    from stages.evaluate.config import AnswerConfig, EngineConfig
    from stages.evaluate.engines.harness_model import HarnessModel
    from stages.evaluate.harness import BuiltTask


def open_run(config: "EngineConfig") -> RecordedRun:
    """The run that ``config`` names."""
    if (lacking := config.lacking_samples) is not None:
        raise ConfigError(lacking)
    return read_run(Path(str(config.samples)), config.samples_digest)


class RecordedSession:
    """The answers of one run; ``engine`` is what is known of whoever gave them."""

    def __init__(self, model: "HarnessModel", run: RecordedRun, work_dir: Path) -> None:
        self.model = model
        self.engine = run
        self._tasks = Tasks(model, work_dir)
        self._files: dict[str, SamplesFile] = {}

    def announce(self, config: "AnswerConfig", checkpoint: Path, data: Mapping[str, Path]) -> None:
        """Nothing is gained by beginning early."""

    def answered(self, config: "AnswerConfig", data: Mapping[str, Path]) -> AnsweredShard:
        """The answers to a shard.  Raises ConfigError or DataError where those that lie there are to something else."""
        if config.repeat_stop is not None:
            raise ConfigError(repeats_apart(config.task))
        built, documents = self._tasks.documents(config, data)
        self.engine.check_version(config.task, built.task.VERSION)
        self._check_context(built, config)
        file = self._file(config.task)
        file.check_known(built.num_docs)
        answers = (recorded_answers(file, document, built.reasoning) for document in documents)
        return AnsweredShard(asked(built), [answered(*pair) for pair in zip(documents, answers, strict=True)])

    def exchange(self, checkpoint: Path) -> None:
        """Never: a run is of one checkpoint."""
        raise EngineError("answers that were recorded are of one checkpoint")

    def close(self) -> None:
        """Nothing is kept open."""

    def _file(self, task: str) -> SamplesFile:
        if task not in self._files:
            self._files[task] = SamplesFile(self.engine.file_of(task))
        return self._files[task]

    def _check_context(self, built: "BuiltTask", config: "AnswerConfig") -> None:
        """lm-eval asks for a BOS that stands behind another one; from what it wrote that cannot be taken out again."""
        is_rolling = built.task.OUTPUT_TYPE == "loglikelihood_rolling"
        if is_rolling and not config.prompt.harness_compat and self.model.tok_encode("a")[:1] == [self._bos]:
            raise ConfigError(
                f"task {config.task}: this tokenizer puts BOS before every text, and lm-eval asks how likely it is "
                "behind another one, which is not so here: set harness_compat: true on its task slot to have its number"
            )

    @property
    def _bos(self) -> int:
        return self.model.prefix_token_id
