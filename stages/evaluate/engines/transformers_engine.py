"""Plain transformers: for checkpoints that vLLM has no kernel for, and for tiny models in tests.

Shape suffixes: b requests of a batch, t padded tokens, k kept positions, v vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoints.converted import CONVERTED
from stages.checkpoints.loadable import DEQUANTIZED, check_method, dense_arguments, dequantized_to
from stages.checkpoints.opening import load_model
from stages.errors import CheckpointError, ConfigError, EngineError, one_line
from stages.evaluate.answers import CUT_OFF, FINISHED
from stages.evaluate.engines.protocol import (
    GenerateRequest,
    Generation,
    Score,
    ScoreRequest,
)
from stages.evaluate.engines.simulated import DENSE, read_quantization, simulated
from stages.imports import no_collection

if TYPE_CHECKING:
    from torch import Tensor

    from stages.evaluate.config import EngineConfig

_STOP_WINDOW_TOKENS = 16  # decoded at each step beyond a stop string's own tokens: its first token may hold other text


class TransformersEngine:
    """One open causal language model of the checkpoint directory ``checkpoint``, on the first GPU if there is one."""

    scoring: Mapping[str, str] = {"one_token": "logits", "longer": "logits"}

    def __init__(self, checkpoint: Path, config: "EngineConfig") -> None:
        self._config = config
        self._load(checkpoint)

    def replace(self, checkpoint: Path) -> None:
        """Load other weights in place of these."""
        self.close()
        self._load(checkpoint)

    def _load(self, checkpoint: Path) -> None:
        with no_collection():
            import torch
            from transformers import AutoTokenizer, GenerationConfig

        config = self._config
        self._batch_size = config.batch_size
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            if quantization := read_quantization(checkpoint):
                check_method(str(quantization.get("quant_method")))
            self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
            model: Any = load_model(checkpoint, dtype=getattr(torch, config.dtype), **dense_arguments(quantization))
            self._model: Any = model.to(self._device).eval()
        except (CheckpointError, ConfigError):
            raise
        except Exception as error:
            raise EngineError(f"transformers could not load {checkpoint.name}: {one_line(error)}") from error
        _check_window(config.max_model_len, self._model.config)
        self.arithmetic: Mapping[str, Any] = _arithmetic(quantization, config.dtype)
        self._end_ids = _end_ids(self._tokenizer, self._model)
        # A checkpoint's own penalties and cut-offs are nobody's gen_kwargs: greedy is greedy, as in vLLM.
        self._model.generation_config = GenerationConfig(top_k=0, top_p=1.0, temperature=1.0)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Engine, its version and platform."""
        return {
            "engine": "transformers",
            "engine_version": metadata.version("transformers"),
            "platform": self._device,
        }

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Score every request; requests that read the same tokens (one-token choices of a context) share a pass."""
        by_input: dict[tuple[int, ...], list[ScoreRequest]] = {}
        for request in dict.fromkeys(requests):
            by_input.setdefault((request.context + request.continuation)[:-1], []).append(request)
        scores: dict[ScoreRequest, Score] = {}
        for batch in self._batches(list(by_input)):
            scores |= self._score(batch, by_input)
        return [scores[request] for request in requests]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Answer every request; greedy ones in batches of like settings, sampled ones alone, each with its seed."""
        by_settings: dict[Any, list[GenerateRequest]] = {}
        for request in dict.fromkeys(requests):
            settings = (request.max_tokens, request.stop, request.sampling, request.seed if request.sampling else None)
            by_settings.setdefault(settings, []).append(request)
        answers: dict[GenerateRequest, Generation] = {}
        for group in by_settings.values():
            by_prompt: dict[tuple[int, ...], list[GenerateRequest]] = {}
            for request in group:
                by_prompt.setdefault(request.prompt, []).append(request)
            for batch in self._batches(list(by_prompt)):
                for prompt, answer in zip(batch, self._answer(batch, group[0]), strict=True):
                    answers |= dict.fromkeys(by_prompt[prompt], answer)
        return [answers[request] for request in requests]

    def reset(self) -> None:
        """Nothing is kept between calls."""

    def close(self) -> None:
        """Free the model."""
        import gc

        import torch

        self._model = None
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def _batches(self, prompts: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        ordered = sorted(prompts, key=len, reverse=True)  # memory runs out at once or never
        for start in range(0, len(ordered), self._batch_size):
            yield ordered[start : start + self._batch_size]

    def _score(
        self, batch: list[tuple[int, ...]], by_input: Mapping[tuple[int, ...], list[ScoreRequest]]
    ) -> dict[ScoreRequest, Score]:
        first = min(len(request.context) - 1 for tokens in batch for request in by_input[tokens])
        logits_bkv = self._logits(batch, first)
        scores = {}
        for row_kv, tokens in zip(logits_bkv, batch, strict=True):
            for request in by_input[tokens]:
                start = len(request.context) - 1 - first
                scores[request] = _score_row(row_kv[start : start + len(request.continuation)], request.continuation)
        return scores

    def _logits(self, batch: list[tuple[int, ...]], first: int) -> "Tensor":
        """Logits at positions ``first`` and later.  Padding stands on the right: no real token can see it."""
        import torch

        longest = max(map(len, batch))
        tokens_bt = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in batch], device=self._device)
        keep_k = torch.arange(first, longest, device=self._device)
        with torch.inference_mode(), _engine_errors(len(batch)):
            logits: Tensor = self._model(tokens_bt, logits_to_keep=keep_k, use_cache=False).logits
        return logits

    def _answer(self, batch: list[tuple[int, ...]], settings: GenerateRequest) -> list[Generation]:
        import torch

        longest = max(map(len, batch))
        pads = [longest - len(tokens) for tokens in batch]
        tokens_bt = torch.tensor([[*[0] * pad, *tokens] for pad, tokens in zip(pads, batch, strict=True)])
        mask_bt = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        if settings.sampling:
            torch.manual_seed(settings.seed or 0)
        stopping = [_StopStrings(self._tokenizer, settings.stop, longest)] if settings.stop else None
        with torch.inference_mode(), _engine_errors(len(batch)):
            output_bt = self._model.generate(
                input_ids=tokens_bt.to(self._device),
                attention_mask=mask_bt.to(self._device),
                max_new_tokens=settings.max_tokens,
                stopping_criteria=stopping,
                eos_token_id=self._end_ids,
                pad_token_id=self._end_ids[0],
                **_sampling(settings),
            )
        return [self._generation(row[longest:], settings) for row in output_bt.tolist()]

    def _generation(self, tokens: list[int], settings: GenerateRequest) -> Generation:
        """What one row holds before its end token or stop string; later tokens of the row are padding."""
        end = next((index for index, token in enumerate(tokens) if token in self._end_ids), None)
        text = self._decode(tokens[:end])
        found = min(((place, stop) for stop in settings.stop if (place := text.find(stop)) >= 0), default=None)
        if found is not None:
            num_tokens = self._num_tokens_until(tokens[:end], settings.stop)
            return Generation(text[: found[0]], num_tokens, FINISHED, tuple(tokens[:num_tokens]), found[1])
        if end is not None:
            return Generation(text, end + 1, FINISHED, tuple(tokens[: end + 1]))
        return Generation(text, len(tokens), CUT_OFF, tuple(tokens))

    def _num_tokens_until(self, tokens: list[int], stop: tuple[str, ...]) -> int:
        low, high = 1, len(tokens)
        while low < high:
            middle = (low + high) // 2
            text = self._decode(tokens[:middle])
            low, high = (low, middle) if any(term in text for term in stop) else (middle + 1, high)
        return low

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class _StopStrings:
    """Stopping criterion of ``generate``: rows whose newest tokens spell one of the stop strings are done."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], prompt_length: int) -> None:
        self._tokenizer, self._stop, self._prompt_length = tokenizer, stop, prompt_length
        longest = max(len(tokenizer.encode(term, add_special_tokens=False)) for term in stop)
        self._window = longest + _STOP_WINDOW_TOKENS

    def __call__(self, tokens_bt: "Tensor", scores: "Tensor", **options: Any) -> "Tensor":
        import torch

        start = max(self._prompt_length, tokens_bt.shape[1] - self._window)
        texts = self._tokenizer.batch_decode(tokens_bt[:, start:].tolist(), clean_up_tokenization_spaces=False)
        done = [any(term in text for term in self._stop) for text in texts]
        return torch.tensor(done, device=tokens_bt.device)


@contextmanager
def _engine_errors(num_requests: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EngineError(f"transformers failed on a batch of {num_requests} requests: {one_line(error)}") from error


def _score_row(logits_kv: "Tensor", continuation: tuple[int, ...]) -> Score:
    import torch

    tokens_k = torch.tensor(continuation, device=logits_kv.device)
    logprobs_k = torch.log_softmax(logits_kv.float(), dim=-1).gather(-1, tokens_k[:, None])[:, 0]
    logprob = float(logprobs_k.sum())
    if math.isnan(logprob):
        raise EngineError("the model returned logits that are not numbers; the checkpoint is broken")
    return Score(logprob, bool((logits_kv.argmax(dim=-1) == tokens_k).all()))


def _sampling(settings: GenerateRequest) -> dict[str, Any]:
    options = dict(settings.sampling)
    if not options:
        return {"do_sample": False}
    unknown = options.keys() - {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
    if unknown:
        raise ConfigError(f"gen_kwargs {sorted(unknown)} are known to vLLM only; remove them or use engine.kind=vllm")
    return {"do_sample": options.get("temperature", 1.0) > 0, **options}


def _end_ids(tokenizer: Any, model: Any) -> list[int]:
    """End tokens of the tokenizer and of the generation config, as vLLM takes them."""
    named = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return list(dict.fromkeys(token for token in found if token is not None))


def _arithmetic(quantization: Mapping[str, Any], dtype: str) -> Mapping[str, Any]:
    """transformers dequantizes what compressed-tensors packed, and lets it round the inputs as the format says.

    Inputs of other forms stay as they are, whatever the format says.
    """
    if not quantization:
        return DENSE
    weights = dequantized_to(quantization, dtype)
    if quantization["quant_method"] in (*CONVERTED, *DEQUANTIZED):
        return simulated(weights, [], None)
    inputs = [args for group in quantization["config_groups"].values() if (args := group.get("input_activations"))]
    rounding = f"compressed-tensors {metadata.version('compressed-tensors')}" if inputs else None
    return simulated(weights, [_rounded_input(args, dtype) for args in inputs], rounding)


def _rounded_input(args: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """compressed-tensors computes a scale in the input's dtype, and lets INT8 reach from -127.5 to 127.5."""
    largest = {"e4m3": 448.0, "int8": 127.5}
    kind = "e4m3" if (args["type"], args["num_bits"]) == ("float", 8) else f"{args['type']}{args['num_bits']}"
    return {
        "kind": kind,
        "granularity": args["strategy"],
        "largest_code": largest.get(kind),
        "scale_dtype": dtype,
    }


def _check_window(max_model_len: int, config: Any) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max_model_len > limit:
        raise ConfigError(f"engine.max_model_len={max_model_len} is more than the model's {limit} positions; lower it")
