"""What an evaluation is asked: one shard of one task, its prompts and the engine; then, how its answers are scored."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from stages.checkpoints.kernels import BACKEND, EMULATION
from stages.evaluate.endpoint_config import EndpointSettings
from stages.evaluate.gen_kwargs import LENGTH_NAMES, check_gen_kwargs, is_sampled
from stages.evaluate.reasoning import AUTO
from stages.evaluate.truths import check_truths
from stages.evaluate.vllm_args import check_vllm_args, unknown_argument
from stages.fields import execution, identity

# Of a task's settings those that no prompt depends on.
SCORING_SETTINGS = frozenset(
    ("filter_list", "metric_list", "process_results", "should_decontaminate", "doc_to_decontamination_query")
)
SIMULATION_VERSION = 1  # of simulated products: raise it when a rounded value or a dense weight changes
VLLM_AT_ONCE, ENDPOINT_AT_ONCE = 256, 32  # vLLM's own default, and ours of a server elsewhere
RECORDED = "recorded"  # a dtype that others chose
ENDPOINT_FIELDS = tuple(each.name for each in fields(EndpointSettings))


class EngineKind(Enum):
    """What runs the model: vLLM, or plain transformers for formats vLLM has no kernel for and for tiny models.

    An endpoint is a server that somebody else runs; recorded answers were given before, to lm-eval.
    """

    vllm = "vllm"
    transformers = "transformers"
    endpoint = "endpoint"
    recorded = "recorded"


@dataclass(kw_only=True, slots=True)
class EngineConfig(EndpointSettings):
    """One open engine.  ``batch_size`` is read by the transformers engine, ``kv_cache_gib`` by vLLM.

    ``max_num_seqs`` are those that are written at once; of an endpoint the requests that wait for an answer.

    Without ``kv_cache_gib`` vLLM takes what it finds free up to ``gpu_memory_utilization``, which is only right for an
    engine that has its GPU alone.  With ``gpus_per_rank`` below 1 several share one, and each may take that part of
    what it could take alone.  ``vllm_args`` reach vLLM as they are, also its server.
    """

    kind: EngineKind = identity(EngineKind.vllm)
    dtype: str = identity("bfloat16")
    max_model_len: int = identity(4096)  # tokens, prompt and output together
    tensor_parallel_size: int = identity(1)
    pipeline_parallel_size: int = identity(1, neutral=1)  # nodes, each with tensor_parallel_size GPUs
    seed: int = identity(0)
    samples: str | None = execution(None)  # a directory
    samples_digest: str | None = identity(None, neutral=None)  # of what lies there; filled in when the plan is made
    gpus_per_rank: float = execution(1.0)
    gpu_memory_utilization: float = execution(0.9)
    gpu_memory_gib: float | None = execution(None)  # of one GPU; null: a plan cannot refuse what does not fit
    kv_cache_gib: float | None = execution(None)
    max_num_seqs: int | None = execution(None)
    enforce_eager: bool = execution(False)
    num_cpus: int = execution(1)
    on_gpu: bool = execution(False)
    batch_size: int = execution(8)
    vllm_args: dict[str, Any] = identity(factory=dict, neutral={})  # more of vLLM's engine arguments, as it names them
    allow_emulation: bool = execution(
        False
    )  # where no kernel rounds a format's inputs; if it is done, vllm_args say it
    exchange_weights: bool = execution(False)  # of checkpoints that differ in values only, in an open engine
    overlap_shards: bool = execution(False)  # no idle tail between shards; texts may differ where two tokens nearly tie

    def __post_init__(self) -> None:
        self._check_kind()
        counted = ("max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "batch_size", "num_cpus")
        for name in (*counted, "max_num_seqs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"engine.{name} must be at least 1; got {value}")
        for name in ("gpu_memory_gib", "kv_cache_gib"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"engine.{name} must be more than 0, or null; got {value}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"engine.gpu_memory_utilization must be a share, up to 1; got {self.gpu_memory_utilization}"
            )
        self._check_share()
        if self.vllm_args and self.kind is not EngineKind.vllm:
            raise ValueError(f"engine.vllm_args are vLLM's, and this engine is {self.kind.name}: leave them out")
        check_vllm_args(self.vllm_args)
        if self.linear_backend == EMULATION and not self.allow_emulation:
            raise ValueError(
                f"engine.vllm_args.{BACKEND}={EMULATION} multiplies dequantized weights, slowly: if that is meant, set "
                "engine.allow_emulation=true"
            )

    def _check_kind(self) -> None:
        if self.samples is not None and not self.is_recorded:
            raise ValueError("engine.samples are answers that lm-eval wrote: choose engine=recorded, or leave it out")
        if self.is_endpoint:
            self.check_endpoint()
            return
        if (name := next(self.said_of_endpoint(), None)) is not None:
            raise ValueError(
                f"engine.{name} is of a server that runs elsewhere: choose engine=endpoint, or leave it out"
            )
        if self.is_recorded:
            self.check_others_own("recorded", RECORDED, "it was set where lm-eval ran")
            return
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"engine.dtype must be bfloat16, float16 or float32; got {self.dtype!r}")

    def _check_share(self) -> None:
        share = f"engine.gpus_per_rank={self.gpus_per_rank:g}"
        if not 0 < self.gpus_per_rank <= 1:
            raise ValueError(f"{share} must be a part of one GPU, more than 0 and up to 1: a rank has no more than one")
        if self.gpus_per_rank == 1 or not self.on_gpu:
            return
        if self.num_ranks > 1:
            raise ValueError(
                f"{share}: an engine of {self.num_ranks} ranks needs each GPU for itself; leave it at 1, or set "
                "engine.tensor_parallel_size=1 and engine.pipeline_parallel_size=1"
            )
        if self.kind is EngineKind.vllm and self.kv_cache_gib is None:
            raise ValueError(
                f"{share}: what vLLM finds free while others start on the same GPU says nothing; give "
                "engine.kv_cache_gib, for the keys and values of its requests"
            )

    @property
    def is_endpoint(self) -> bool:
        """Whether a server somewhere else answers, and nothing of the model is loaded here."""
        return self.kind is EngineKind.endpoint

    @property
    def is_recorded(self) -> bool:
        """Whether nothing is asked any more: the answers lie in files."""
        return self.kind is EngineKind.recorded

    @property
    def is_elsewhere(self) -> bool:
        """Whether nothing of the model is loaded here."""
        return self.is_endpoint or self.is_recorded

    @property
    def lacking_samples(self) -> str | None:
        """What must be said before recorded answers can be read, in one line; None where all is said."""
        if self.samples is not None:
            return None
        return "engine=recorded takes answers that lm-eval wrote with --log_samples: say where, engine.samples=DIR"

    @property
    def unknown_argument(self) -> str | None:
        """What of ``vllm_args`` the vLLM that is installed here does not know, in one line; None where it knows all."""
        return unknown_argument(self.vllm_args)

    @property
    def linear_backend(self) -> str | None:
        """The maker of kernels that ``vllm_args`` hold vLLM to; None where it chooses itself."""
        named = self.vllm_args.get(BACKEND)
        found = str(named).lower().replace("-", "_")
        return None if named is None or found == "auto" else found

    @property
    def num_at_once(self) -> int:
        """Answers that are written side by side, at most; of transformers see ``batch_size``."""
        return self.max_num_seqs or (ENDPOINT_AT_ONCE if self.is_endpoint else VLLM_AT_ONCE)

    @property
    def num_ranks(self) -> int:
        """Processes, each with its own part of the weights."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def num_gpus(self) -> int:
        """GPUs that one open engine computes on."""
        return self.num_ranks if self.on_gpu else 0

    @property
    def num_gpus_held(self) -> float:
        """The same, where several engines share one only this one's part of it."""
        return self.num_gpus * self.gpus_per_rank

    @property
    def memory_share(self) -> float:
        """The part of each GPU's memory that it may take."""
        return self.gpu_memory_utilization * self.gpus_per_rank


_OWN_TEMPLATE_KWARGS = ("messages", "conversation", "tokenize", "add_generation_prompt", "continue_final_message")


def _check_template_kwargs(given: Mapping[str, Any], is_applied: bool) -> None:
    if given and not is_applied:
        raise ValueError("chat_template_kwargs need apply_chat_template: true")
    for name in given:
        if name in _OWN_TEMPLATE_KWARGS:
            raise ValueError(f"chat_template_kwargs.{name} is set by the evaluation itself: leave it out")
    check_truths("chat_template_kwargs", given)


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    """How documents become prompts; ``num_fewshot`` None keeps the task's own, ``gen_kwargs`` go over the task's.

    ``num_repeats``: so many answers to every document, each with a seed of its own; None for as many as the task says.

    ``chat_template_kwargs`` are what the chat template reads beside the messages (``enable_thinking``).
    ``reasoning_end`` is the text that ends a model's thoughts, which are no part of its answer; "auto" looks for the
    tags of its tokenizer and chat template, null takes everything as the answer.

    ``harness_compat`` asks and scores as lm-eval does also where that is wrong: for comparing with its numbers.
    """

    num_fewshot: int | None = identity(None)
    apply_chat_template: bool = identity(True)
    fewshot_as_multiturn: bool = identity(True)
    system_instruction: str | None = identity(None)
    chat_template_kwargs: dict[str, Any] = identity(factory=dict, neutral={})
    reasoning_end: str | None = identity(AUTO, neutral=AUTO)
    gen_kwargs: dict[str, Any] = identity(factory=dict)
    fewshot_seed: int = identity(1234)
    num_repeats: int | None = identity(None, neutral=None)
    harness_compat: bool = identity(False, neutral=False)

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot must not be negative; got {self.num_fewshot}")
        if self.num_repeats is not None and self.num_repeats < 1:
            raise ValueError(f"num_repeats must be at least 1; got {self.num_repeats}")
        if self.reasoning_end == "":
            raise ValueError("reasoning_end is empty: give the text that ends thoughts, auto, or null for none")
        _check_template_kwargs(self.chat_template_kwargs, self.apply_chat_template)
        check_gen_kwargs(self.gen_kwargs)
        self.gen_kwargs = {name: value for name, value in self.gen_kwargs.items() if value is not None}

    @property
    def is_sampled(self) -> bool | None:
        """Whether answers are drawn, where ``gen_kwargs`` says it."""
        return is_sampled(self.gen_kwargs)

    @property
    def asked_tokens(self) -> int | None:
        """The most tokens that an answer may have, where ``gen_kwargs`` says it."""
        asked = (self.gen_kwargs.get(name) for name in LENGTH_NAMES)
        return next((value for value in asked if isinstance(value, int)), None)


@dataclass(kw_only=True, slots=True)
class AnswerConfig:
    """One shard: documents ``start`` to ``stop`` (half open) of the leaf lm-eval task ``task``, each asked as often as
    its task says, or the repeats from ``repeat_start`` to ``repeat_stop`` of that.

    With ``limit_seed`` they are counted in an order that is drawn with it (``order.py``), not in the task's own.
    ``rerun`` counts evaluations of what was evaluated before, each of which asks in another order.
    """

    task: str = identity()
    prompt: PromptConfig = identity(factory=PromptConfig)
    overrides: dict[str, Any] = identity(factory=dict, neutral={})  # settings that a group lays over its member
    scoring_overrides: dict[str, Any] = execution(factory=dict)  # those of SCORING_SETTINGS
    start: int = identity()
    stop: int = identity()
    limit_seed: int | None = identity(None, neutral=None)
    repeat_start: int = identity(0, neutral=0)
    repeat_stop: int | None = identity(None, neutral=None)  # None: the last one
    num_docs: int | None = execution(None)  # the full size the plan counted on; another size is a DataError
    harness: str = identity()  # lm-eval's version and digests of what else makes the prompts (task_identity.py)
    include_paths: list[str] = execution(factory=list)
    reads: list[str] = execution(factory=list)  # names of local files that the task reads beside its own folder
    engine: EngineConfig = identity(factory=EngineConfig)
    # Version of the arithmetic that stands in for kernels which a CPU lacks; None where nothing can be simulated.
    simulation: int | None = identity(None, neutral=None)
    # What the planned GPU's kernels make of the format (W4A16 of a W4A4 one); None: what it says.
    effective: str | None = identity(None, neutral=None)
    rerun: int = identity(0, neutral=0)  # 0: the first

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"task {self.task}: document range {self.start} to {self.stop} is empty")
        if not 0 <= self.repeat_start < (self.repeat_stop or self.repeat_start + 1):
            raise ValueError(f"task {self.task}: repeats {self.repeat_start} to {self.repeat_stop} are none")


@dataclass(kw_only=True, slots=True)
class LeafConfig:
    """A leaf lm-eval task whose answers are scored."""

    task: str = identity()
    overrides: dict[str, Any] = identity(factory=dict, neutral={})
    harness: str = identity()  # the same of all that the task is
    reads: list[str] = execution(factory=list)


@dataclass(kw_only=True, slots=True)
class ScoringConfig:
    """What repeated answers to a document amount to, beside the mean of their scores.

    ``pass_at``: for each k the chance that one of k answers is right, of metrics that are right or wrong.
    ``majority``: the score of the answer that most of them agree on.
    """

    pass_at: list[int] = identity(factory=list, neutral=[])
    majority: bool = identity(False, neutral=False)

    def __post_init__(self) -> None:
        if wrong := [k for k in self.pass_at if k < 1]:
            raise ValueError(f"pass_at must name whole numbers from 1; got {wrong[0]}")


@dataclass(kw_only=True, slots=True)
class ScoreConfig:
    """All answers to one task: a single lm-eval task, or the leaves of a group."""

    leaves: list[LeafConfig] = identity()
    scoring: ScoringConfig = identity(factory=ScoringConfig)
    harness_compat: bool = identity(False, neutral=False)
    cluster: str | None = identity(None, neutral=None)  # a field of the documents: those of one value belong together
    num_expected: int = execution(0)  # documents over all leaves, for estimates
    include_paths: list[str] = execution(factory=list)
