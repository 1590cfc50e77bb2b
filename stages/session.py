"""What the shards of one checkpoint share, the engine with its weights and the tasks built so far."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import ConfigError
from stages.harness import BuiltTask, load_task

if TYPE_CHECKING:
    from stages.engines.harness_model import HarnessModel
    from stages.engines.protocol import Engine
    from stages.evaluate import EngineConfig, EvaluateConfig, PromptConfig


class Session:
    """An open engine with one checkpoint, and the tasks built so far."""

    def __init__(self, model: "HarnessModel", work_dir: Path) -> None:
        self.model = model
        self.engine = model.engine
        self._work_dir = work_dir
        self._tasks: dict[str, BuiltTask] = {}

    def task(self, config: "EvaluateConfig", data: Mapping[str, Path]) -> BuiltTask:
        """The task under this prompt config, built once: few-shot examples depend on the documents before."""
        places = {name: str(path) for name, path in data.items()}
        key = json.dumps([config.task, config.overrides, asdict(config.prompt), config.include_paths, places])
        if key not in self._tasks:
            rows_dir = self._work_dir / f"rows_{len(self._tasks)}"
            task = load_task(config.task, config.overrides, config.include_paths, data, rows_dir)
            template = self._chat_template(config.prompt)
            self._tasks[key] = BuiltTask(task, config.prompt, template)
        return self._tasks[key]

    def _chat_template(self, prompt: "PromptConfig") -> Callable[..., str] | None:
        if not prompt.apply_chat_template:
            return None
        if self.model.tokenizer.chat_template is None:
            raise ConfigError("the checkpoint's tokenizer has no chat template; set prompt.apply_chat_template=false")
        template: Callable[..., str] = self.model.apply_chat_template
        return template


def open_engine(checkpoint: Path, config: "EngineConfig") -> "Engine":
    """Load ``checkpoint`` into the engine of that kind.  Raises EngineError when it does not start."""
    if config.kind.name == "vllm":
        from stages.engines.vllm_engine import VllmEngine

        return VllmEngine(checkpoint, config)
    from stages.engines.transformers_engine import TransformersEngine

    return TransformersEngine(checkpoint, config)
