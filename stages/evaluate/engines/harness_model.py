"""lm-eval's rules between text and tokens, the same over every engine.

Tokenisation of context and continuation, special tokens, truncation from the left, stop sequences, generation
arguments and chat templates follow lm-eval's own adapters (``HFLM`` and ``VLLM``), compared document by document in
``tests/stages/evaluate/engines/test_engines.py``.  Imported when a session opens: a subclass needs its base class.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lm_eval.api.instance import Instance  # noqa: TID253
from lm_eval.api.model import TemplateLM  # noqa: TID253

from stages.errors import ConfigError
from stages.evaluate.answers import Answer, response_of
from stages.evaluate.engines.chat_template import ChatTemplate
from stages.evaluate.engines.protocol import Engine, GenerateRequest, Generation, Score, ScoreRequest
from stages.evaluate.gen_kwargs import DEFAULT_MAX_TOKENS, SAMPLING_NAMES, check_gen_kwargs
from stages.evaluate.reasoning import Reasoning, find_reasoning


@dataclass(frozen=True, slots=True)
class Encoded:
    """One request of lm-eval as token ids: continuations to score, or one generation."""

    scores: tuple[ScoreRequest, ...] = ()
    generation: GenerateRequest | None = None
    stop: tuple[str, ...] = ()  # inside of a turn, also where the engine does not look for them
    opening: str | None = None  # of thoughts, see Reasoning
    is_rolling: bool = False
    truncated: bool = False


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Text to tokens, and an engine's answers back to what lm-eval expects.

    ``max_model_len`` bounds prompt and output together, in tokens.  With an ``engine`` of its own it is a model that
    lm-eval can call.
    """

    def __init__(self, tokenizer: Any, max_model_len: int, seed: int = 0, engine: Engine | None = None) -> None:
        super().__init__()
        self._engine = engine
        self.tokenizer = tokenizer
        self.chat = ChatTemplate(tokenizer)
        self.max_length = max_model_len
        self._seed = seed
        self._bos_text = tokenizer.decode([self.prefix_token_id])
        self._eos_text = tokenizer.decode([self.eot_token_id])
        self._known: dict[tuple[str, bool | None], list[int]] = {}
        self._contexts: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._reasonings: dict[str | None, Reasoning | None] = {}

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        token: int = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is conditioned on."""
        token: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if token is None else token

    @property
    def tokenizer_name(self) -> str:
        """Part of lm-eval's request cache key, which is not used here."""
        return ""

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; a text that already begins with the BOS token gets no second one."""
        special = self._special(string, add_special_tokens)
        known = self._known.get((string, special))
        return list(self.tokenizer.encode(string, **_option(special))) if known is None else list(known)

    def tokenize(self, instances: Iterable[Instance]) -> None:
        """Remember the tokens of all texts of a shard, made in one call on all cores, in place of the last shard's.

        One after the other they take longer than a fast GPU takes to score them (five texts of 700 tokens a document).
        """
        texts = dict.fromkeys(text for instance in instances for text in _texts(instance))
        keys = [(text, self._special(text, None)) for text in texts]
        self._known, self._contexts = {}, {}
        for special in {special for _, special in keys}:
            some = [text for text, wanted in keys if wanted is special]
            try:
                tokens = self.tokenizer(
                    some, return_attention_mask=False, return_token_type_ids=False, **_option(special)
                )
            except Exception:  # of one text; each is then read when it is asked for, and costs its own document
                continue
            self._known |= {(text, special): ids for text, ids in zip(some, tokens["input_ids"], strict=True)}

    def _special(self, text: str, wanted: bool | None) -> bool | None:
        return False if wanted is None and text.startswith(self._bos_text) else wanted

    def reasoning(self, setting: str | None) -> Reasoning | None:
        """How the model thinks, by what ``reasoning_end`` says; looked for once, in a vocabulary that is long."""
        if setting not in self._reasonings:
            self._reasonings[setting] = find_reasoning(setting, self.tokenizer)
        return self._reasonings[setting]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True, **options: Any
    ) -> str:
        """lm-eval's interface: the conversation as text."""
        return self.chat.rendered(chat_history, add_generation_prompt, **options)

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """Texts that are no part of what is said; one among a task's stop strings is the end of a turn."""
        added = self.tokenizer.added_tokens_decoder.values()
        return frozenset((*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's interface: (log-likelihood, is greedy) of each continuation."""
        return self._responses(requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """lm-eval's interface: log-likelihood of each whole text."""
        return self._responses(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's interface: the text written after each context."""
        return self._responses(requests)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("loglikelihood does not go this way here")

    def _responses(self, requests: Sequence[Instance]) -> list[Any]:
        assert self._engine is not None
        self.tokenize(requests)
        work = [self.encode(request, harness_compat=True) for request in requests]
        return [response_of(answer, None).value for answer in self.answer(self._engine, work)]

    def encode(
        self, instance: Instance, repeat: int = 0, harness_compat: bool = False, reasoning: Reasoning | None = None
    ) -> Encoded:
        """Token ids of one request.  Raises ConfigError for settings that no document can be answered under."""
        if instance.request_type == "generate_until":
            return self._encode_generation(instance, repeat, reasoning)
        if instance.request_type == "loglikelihood_rolling":
            return self._encode_rolling(instance.args[0], harness_compat)
        if instance.request_type == "loglikelihood":
            return self._encode_choice(*instance.args[:2])
        raise ConfigError(f"lm-eval request type {instance.request_type!r} is not supported")

    def answer(self, engine: Engine, work: Sequence[Encoded]) -> list[Answer]:
        """Answers in order; all of one kind go to the engine in one call."""
        scores = iter(engine.loglikelihood([request for item in work for request in item.scores]))
        generations = iter(engine.generate([item.generation for item in work if item.generation is not None]))
        return self.assembled(work, scores, generations)

    def assembled(
        self, work: Sequence[Encoded], scores: Iterator[Score], generations: Iterator[Generation]
    ) -> list[Answer]:
        """What an engine returned, in order, as answers to ``work``."""
        return [
            _scored(item, [next(scores) for _ in item.scores])
            if item.generation is None
            else _written(item, item.generation, next(generations))
            for item in work
        ]

    def _encode_choice(self, context: str, continuation: str) -> Encoded:
        if context == "":
            tokens = self.tok_encode(continuation, add_special_tokens=False)
            if tokens and tokens[0] == self.prefix_token_id:
                before, after = tokens[:1], tokens[1:]
            else:
                before, after = [self.prefix_token_id], tokens
        else:
            before, after = self._encode_pair(context, continuation)
        return self._window(before, after)

    def _encode_rolling(self, text: str, harness_compat: bool) -> Encoded:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        tokens = self.tok_encode(text)
        if tokens[:1] == [self.prefix_token_id] and not harness_compat:
            tokens = tokens[1:]  # the tokenizer's own, which lm-eval asks for after another one
        # One place is for the context token and one for the token that vLLM must generate.
        windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length - 2, 1)
        parts = [self._window(*make_disjoint_window(window)) for window in windows]
        return Encoded(scores=tuple(score for part in parts for score in part.scores), is_rolling=True)

    def _window(self, context: list[int], continuation: list[int]) -> Encoded:
        """The last tokens that fit, one place left for the token that vLLM must generate; one stays as context."""
        if not continuation:
            # It would be certain, and win over every other choice.
            raise ValueError("a continuation is empty, or the tokenizer merges all of it into its context")
        size = self.max_length - 1
        tokens = tuple((*context, *continuation)[-size:])
        split = max(1, len(tokens) - len(continuation))
        truncated = len(context) + len(continuation) > size
        # One object for all choices after it: it is compared, and sent to another process, once.
        shared = self._contexts.setdefault(tokens[:split], tokens[:split])
        return Encoded(scores=(ScoreRequest(shared, tokens[split:]),), truncated=truncated)

    def _encode_generation(self, instance: Instance, repeat: int, reasoning: Reasoning | None) -> Encoded:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        context, arguments = instance.args[:2]
        options = dict(normalize_gen_kwargs(arguments, DEFAULT_MAX_TOKENS))
        stop = tuple(term for term in handle_stop_sequences(options["until"], self._eos_text) if term)
        max_tokens = int(options["max_gen_toks"])
        room = self.max_length - max_tokens
        if room < 1:
            raise ConfigError(
                f"task {instance.task_name} may write {max_tokens} tokens, but engine.max_model_len={self.max_length} "
                f"leaves no room for a prompt; raise it or lower gen_kwargs.max_gen_toks of its task slot"
            )
        tokens = self.tok_encode(context)
        if not tokens:
            raise ValueError("the prompt is empty")
        sampling = _sampling(options)
        seed = self._seed_of(instance, repeat) if dict(sampling).get("temperature", 0.0) > 0 else None
        opening = None if reasoning is None else reasoning.opening(context)
        inside = tuple(term for term in stop if term not in self.special_tokens)
        ends = tuple(term for term in stop if term in self.special_tokens)
        looked_for = stop if opening is None else ends  # any other would end the thoughts
        kept, truncated = tuple(tokens[-room:]), len(tokens) > room
        text = self._text_of(kept) if truncated else context
        is_complete = truncated or self._special(context, None) is False
        request = GenerateRequest(kept, max_tokens, looked_for, sampling, seed, text, is_complete)
        return Encoded(generation=request, stop=inside, opening=opening, truncated=truncated)

    def _text_of(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _seed_of(self, instance: Instance, repeat: int) -> int:
        """A seed of its own for every sampled answer, so that an answer does not depend on its neighbours."""
        place = json.dumps([self._seed, instance.task_name, instance.doc_id, instance.idx, repeat])
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "big")


def _texts(instance: Instance) -> tuple[str, ...]:
    """What will be tokenised for a request: the context without the spaces that lm-eval gives to the continuation."""
    if not all(isinstance(text, str) for text in instance.args[: 2 if instance.request_type == "loglikelihood" else 1]):
        return ()
    if instance.request_type == "loglikelihood" and instance.args[0] != "":
        context, continuation = instance.args[:2]
        return context.rstrip(), context + continuation
    return instance.args[:1] if instance.request_type != "loglikelihood" else ()


def _option(add_special_tokens: bool | None) -> dict[str, bool]:
    return {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}


def _sampling(options: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Empty for greedy decoding, which is what lm-eval means by no ``do_sample`` and no temperature."""
    try:
        check_gen_kwargs(options)
    except ValueError as error:
        raise ConfigError(f"the task asks for what cannot be done: {error}") from error
    given = {name: options[name] for name in SAMPLING_NAMES if options.get(name) is not None}
    penalties = {name: value for name, value in given.items() if name.endswith("penalty")}
    if not options["do_sample"]:
        return (("temperature", 0.0), *sorted(penalties.items())) if penalties else ()
    return tuple(sorted({"temperature": 1.0, **given}.items()))


def _scored(item: Encoded, scores: list[Score]) -> Answer:
    return Answer(
        logprob=sum((score.logprob for score in scores), 0.0),
        is_greedy=None if item.is_rolling else all(score.is_greedy for score in scores),
        num_prompt_tokens=sum(len(part.context) + len(part.continuation) for part in item.scores),
        truncated=item.truncated,
    )


def _written(item: Encoded, request: GenerateRequest, generation: Generation) -> Answer:
    return Answer(
        text=generation.text,
        token_ids=generation.token_ids,
        finish_reason=generation.finish_reason,
        stopped_by=generation.stopped_by if generation.stopped_by in item.stop else None,  # else the turn's end
        stop=item.stop,
        opening=item.opening,
        seed=request.seed,
        num_prompt_tokens=len(request.prompt),
        num_output_tokens=generation.num_tokens,
        truncated=item.truncated,
    )
