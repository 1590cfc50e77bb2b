"""What shards share: an engine with a checkpoint's weights, the tasks built so far, and what is under way.

The next checkpoint of the same family takes the place of the first in it: tasks and tokens stay what they are.

The next shards are built while the engine answers this one (``builders``), and what the engine is given of the next is
made ready in a thread beside it.  The engine stays in the thread that opened it: on a CPU, moved to another, it kept
that one waiting until it had nothing left to do.
"""

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError, EngineError, StageError
from stages.evaluate.building import Asked, Built, asked_for
from stages.evaluate.engines.family import family
from stages.evaluate.engines.protocol import Ahead, Generation, Overlapping, Replaceable

if TYPE_CHECKING:
    from stages.evaluate.answers import Answer, Answered
    from stages.evaluate.builders import Builder
    from stages.evaluate.config import AnswerConfig, EngineConfig
    from stages.evaluate.engines.harness_model import HarnessModel
    from stages.evaluate.engines.protocol import Engine


# Python hands over between threads after 5 ms otherwise, as long as a small model's decode step.
SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True, slots=True)
class AnsweredShard:
    """How a shard's task was asked, and its documents with their answers."""

    asked: Asked
    documents: Sequence["Answered"]


@dataclass(slots=True, eq=False)
class Shard:
    """A shard under way; ``names`` are those of its requests in the engine, once they are there.

    ``ready`` is what an engine that goes ahead is started with: None of a shard that is not scored alone.
    """

    checkpoint: Path
    built: Future[Built]
    ready: Future[Any] | None = None
    names: list[str] | None = None
    is_passed: bool = False  # put into the engine, and then another one was asked for


class Session:
    """An open engine with one checkpoint, the tasks built so far, and the shards that were announced.

    With ``overlaps`` the engine begins to write the answers of the next shard while the last ones of a shard are
    still being written; otherwise every shard meets an engine that remembers nothing and has nothing else to do.  One
    that is scored is put into the engine as soon as the last one's scores are known, before these are written.
    """

    def __init__(
        self, model: "HarnessModel", engine: "Engine", checkpoint: Path, builder: "Builder", overlaps: bool = False
    ) -> None:
        self.model = model
        self.engine = engine
        self._checkpoint = checkpoint
        self._builder = builder
        self._overlaps = overlaps
        self._under_way: dict[tuple[Path, str], Shard] = {}
        self._generations: dict[str, Generation] = {}
        self._thread = ThreadPoolExecutor(1, "ready")
        self._switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._ahead: Shard | None = None  # in the engine, whose scores nobody has asked for yet

    def announce(self, config: "AnswerConfig", checkpoint: Path, data: Mapping[str, Path]) -> None:
        """Begin to build a shard that will be asked for, of this checkpoint or of one that takes its place."""
        key = checkpoint, asked_for(config, data)
        if key not in self._under_way:
            self._under_way[key] = Shard(checkpoint, self._builder.submit(config, data))

    def answered(self, config: "AnswerConfig", data: Mapping[str, Path]) -> AnsweredShard:
        """The answers to a shard, announced or not.  Raises what building or answering it raised."""
        self.announce(config, self._checkpoint, data)
        key = self._checkpoint, asked_for(config, data)
        self._ready_after(key)
        try:
            answered = self._answer(self._under_way[key])
        finally:
            del self._under_way[key]
        with suppress(StageError):  # told by the shard whose answers do not come
            self._go_ahead()
        return answered

    def exchange(self, checkpoint: Path) -> None:
        """Answer from another checkpoint from now on, as if the session had been opened with it.

        Raises StageError where that cannot be, or went wrong: the session must be closed then.
        """
        if not isinstance(self.engine, Replaceable):
            raise EngineError("this engine keeps the weights it was opened with")
        if family(checkpoint) != family(self._checkpoint):
            raise EngineError(
                f"{checkpoint.name} has another config, tokenizer or tensors than {self._checkpoint.name}"
            )
        self._drop_ahead()
        self._finish_begun()
        self._generations.clear()
        self._under_way = {key: shard for key, shard in self._under_way.items() if shard.checkpoint == checkpoint}
        self.engine.replace(checkpoint)
        self._checkpoint = checkpoint

    def close(self) -> None:
        """Drop what is under way and close the engine."""
        try:
            self._builder.close()
            self._thread.shutdown(cancel_futures=True)
        finally:
            sys.setswitchinterval(self._switch_interval_s)
            self.engine.close()

    def _answer(self, shard: Shard) -> AnsweredShard:
        """All requests of the shard at once; its bytes depend on no other shard unless they overlap.

        Nor do they depend on a restart in between.
        """
        built, engine = _built(shard), self.engine
        is_ahead = self._ahead is shard
        if not is_ahead:
            self._drop_ahead()
        self._ahead = None
        if is_ahead:
            answers = self.model.answer(engine, built.requests)
        elif self._overlaps and isinstance(engine, Overlapping) and _only_writes(built):
            answers = self._written(shard, built, engine)
        else:
            self._finish_begun()
            engine.reset()
            answers = self.model.answer(engine, built.requests)
        return AnsweredShard(built.asked, built.answered(answers))

    def _written(self, shard: Shard, built: Built, engine: Overlapping) -> list["Answer"]:
        """Generations, with the next shards' beside them as soon as those are built."""
        if shard.names is None:
            shard.names = self._put(engine, built)
        self._begin(engine)
        while not all(name in self._generations for name in shard.names):
            self._generations.update(engine.advance())
            self._begin(engine)
        written = (self._generations.pop(name) for name in shard.names)
        return self.model.assembled(built.requests, iter(()), written)

    def _ready_after(self, key: tuple[Path, str]) -> None:
        """Let a thread make ready what will be asked for after this, as soon as it is built."""
        shard = next((shard for other, shard in self._under_way.items() if other != key and not shard.is_passed), None)
        if shard is not None and shard.ready is None and isinstance(self.engine, Ahead):
            shard.ready = self._thread.submit(_ready, shard, self.engine)

    def _go_ahead(self) -> None:
        """Give the engine the next shard, if its answers are scores alone."""
        shard, engine = self._next(), self.engine
        if shard is None or not isinstance(engine, Ahead):
            return
        ready = _ready(shard, engine) if shard.ready is None else shard.ready.result()
        if ready is not None:
            self._finish_begun()
            engine.start(ready)
            self._ahead = shard

    def _next(self) -> Shard | None:
        """The one that will be asked for after this, as far as is known; None while it is being built."""
        for shard in self._under_way.values():
            if shard.checkpoint != self._checkpoint or not shard.built.done():
                return None
            if not shard.is_passed and not shard.built.exception():
                return shard
        return None

    def _drop_ahead(self) -> None:
        """Another was published meanwhile by somebody else, or has other weights."""
        if self._ahead is not None:
            self._ahead.is_passed, self._ahead = True, None
            self.engine.reset()

    def _finish_begun(self) -> None:
        """Let the engine end what was begun for shards that were not asked for, so that it can be emptied."""
        begun = [name for shard in self._under_way.values() for name in shard.names or ()]
        while isinstance(self.engine, Overlapping) and not all(name in self._generations for name in begun):
            self._generations.update(self.engine.advance())

    def _begin(self, engine: Overlapping) -> None:
        """Put into the engine what is built, up to the first shard that must have it alone, or other weights."""
        for shard in list(self._under_way.values()):
            if shard.checkpoint != self._checkpoint or not shard.built.done():
                return
            if shard.names is not None or shard.built.exception():
                continue
            if not _only_writes(shard.built.result()):
                return
            with suppress(ConfigError):  # that shard's own fault, told when it is asked for
                shard.names = self._put(engine, shard.built.result())

    def _put(self, engine: Overlapping, built: Built) -> list[str]:
        return engine.begin([item.generation for item in built.requests if item.generation is not None])


def _built(shard: Shard) -> Built:
    try:
        return shard.built.result()
    except BrokenExecutor as error:  # a new session has new processes
        raise EngineError("the process that made its prompts died; was there memory enough for it?") from error


def _ready(shard: Shard, engine: Ahead) -> Any:
    """What the engine is started with; None of a shard of which something is written."""
    requests = _built(shard).requests
    if any(item.generation is not None for item in requests):
        return None
    return engine.ready([score for item in requests for score in item.scores])


def _only_writes(built: Built) -> bool:
    return all(item.generation is not None for item in built.requests)


def open_engine(checkpoint: Path, config: "EngineConfig") -> "Engine":
    """Load ``checkpoint`` into the engine of that kind.  Raises EngineError when it does not start."""
    if config.kind.name == "vllm":
        from stages.evaluate.engines.vllm_engine import VllmEngine

        return VllmEngine(checkpoint, config)
    if config.is_endpoint:
        from stages.evaluate.engines.endpoint import EndpointEngine

        return EndpointEngine(checkpoint, config)
    from stages.evaluate.engines.transformers_engine import TransformersEngine

    return TransformersEngine(checkpoint, config)
