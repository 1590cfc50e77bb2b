"""How a checkpoint speaks: next-token distributions on held-out text and greedy answers to probe prompts."""

import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.bf16 import fast_bf16_linear
from stages.chat import render_chat
from stages.gate_weights import Check

if TYPE_CHECKING:
    from torch import Tensor

_HELD_OUT_PATH = Path(__file__).parent / "texts" / "held_out.txt"
_MAX_WINDOW_TOKENS = 512  # at 128k vocabulary entries a window's float32 log-probabilities take 0.25 GiB
_MIN_DISTINCT = 0.25  # a loop of 7 tokens has this share of distinct trigrams after 32 tokens
_PROBES = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the largest number of a list.",
    "A train travels 120 kilometres in 2 hours. How fast does it go?",
)


class Behaviour(NamedTuple):
    """What one model does on held-out text and on the probes.

    ``log_probs``: float32 (num_tokens, vocabulary) on the CPU; ``loss``: nats per token; ``answers``: token ids.
    """

    log_probs: "Tensor"
    loss: float
    answers: list[list[int]]


def observe(model_dir: Path, num_probe_tokens: int) -> Behaviour:
    """Load the model (a compressed one with its activations quantized as when served), look at it, and unload it."""
    import torch

    with torch.inference_mode(), fast_bf16_linear():
        behaviour = _observe(model_dir, num_probe_tokens)
    gc.collect()  # hooks make a compressed model part of reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return behaviour


def check_logits(checkpoint: Behaviour) -> Check:
    """No logit is NaN or infinite."""
    num_bad = int((~checkpoint.log_probs.isfinite()).any(dim=-1).sum())
    detail = "positions of held-out text with a logit that is not finite"
    return Check("logits_finite", num_bad == 0, num_bad, 0, detail)


def check_loss(base: Behaviour, checkpoint: Behaviour, max_lost: float) -> Check:
    """Of the base's advantage over uniform guessing at most ``max_lost`` is lost (a base without one may lose all)."""
    advantage = math.log(base.log_probs.shape[-1]) - base.loss
    limit = base.loss + max_lost * max(advantage, 1.0)
    passed = checkpoint.loss <= limit  # False for NaN as well
    return Check(
        "held_out_loss", passed, _finite(checkpoint.loss), limit, f"nats per token; the base has {base.loss:.3f}"
    )


def check_answers(base: Behaviour, checkpoint: Behaviour, max_degenerate: float) -> Check:
    """Only probes that the base answers properly count: what it cannot do, quantization has not broken."""
    pairs = zip(base.answers, checkpoint.answers, strict=True)
    broken = [is_degenerate(answer) for base_answer, answer in pairs if not is_degenerate(base_answer)]
    share = sum(broken) / len(broken) if broken else 0.0
    detail = f"{sum(broken)} of the {len(broken)} probes that the base answers get an empty or looping answer"
    return Check("answers_not_degenerate", share <= max_degenerate, share, max_degenerate, detail)


def check_divergence(base: Behaviour, checkpoint: Behaviour, max_mean_kl: float | None) -> Iterator[Check]:
    """Mean KL divergence from base to checkpoint, and how often both have the same best guess."""
    divergence = (base.log_probs.exp() * (base.log_probs - checkpoint.log_probs)).sum(dim=-1).mean().item()
    same = (base.log_probs.argmax(dim=-1) == checkpoint.log_probs.argmax(dim=-1)).float().mean().item()
    passed = math.isfinite(divergence) and (max_mean_kl is None or divergence <= max_mean_kl)
    yield Check("mean_kl", passed, _finite(divergence), max_mean_kl, "nats per token of held-out text")
    yield Check("top1_agreement", True, same, None, "share of held-out tokens with the same best guess")


def is_degenerate(answer: list[int]) -> bool:
    """Whether an answer is empty or goes round in a short loop."""
    trigrams = list(zip(answer, answer[1:], answer[2:], strict=False))
    return not answer or (len(trigrams) > 1 and len(set(trigrams)) / len(trigrams) < _MIN_DISTINCT)


def _observe(model_dir: Path, num_probe_tokens: int) -> Behaviour:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto", device_map="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    log_probs, loss = _read_held_out(model, tokenizer)
    return Behaviour(log_probs, loss, _answer_probes(model, tokenizer, num_probe_tokens))


def _read_held_out(model: Any, tokenizer: Any) -> "tuple[Tensor, float]":
    import torch

    text = _HELD_OUT_PATH.read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
    windows = ids.split(min(_MAX_WINDOW_TOKENS, model.config.max_position_embeddings))
    log_probs = [_next_token_log_probs(model, window) for window in windows]
    pairs = list(zip(log_probs, windows, strict=True))
    hits = torch.cat([known[:-1].gather(1, window[1:, None]) for known, window in pairs])
    return torch.cat(log_probs), -hits.mean().item()


def _next_token_log_probs(model: Any, window: "Tensor") -> "Tensor":
    logits: Tensor = model(window[None].to(model.device)).logits[0]
    return logits.float().log_softmax(dim=-1).cpu()


def _answer_probes(model: Any, tokenizer: Any, num_tokens: int) -> list[list[int]]:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    texts = [_render_probe(tokenizer, probe) for probe in _PROBES]
    special = tokenizer.chat_template is None
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=special).to(model.device)
    outputs = model.generate(**batch, max_new_tokens=num_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    answers = outputs[:, batch["input_ids"].shape[1] :].tolist()
    ignored = set(tokenizer.all_special_ids)
    return [[token for token in answer if token not in ignored] for answer in answers]


def _render_probe(tokenizer: Any, probe: str) -> str:
    if tokenizer.chat_template is None:
        return f"Question: {probe}\nAnswer:"
    return render_chat(tokenizer, [{"role": "user", "content": probe}], add_generation_prompt=True)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
