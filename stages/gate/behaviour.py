"""How a checkpoint speaks: next-token distributions on held-out text and greedy answers to probe prompts."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.checkpoints.chat import render_chat
from stages.checkpoints.next_token import (
    agreements,
    divergences,
    log_probs_of,
    next_token_logits,
    open_model,
    surprises,
)
from stages.documents import read_json, write_json
from stages.gate.artifact import Check

if TYPE_CHECKING:
    from torch import Tensor

_LOGITS, _FACTS = "logits.safetensors", "behaviour.json"
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

    ``logits``: (num_tokens, vocabulary) on the CPU, in the dtype that the model computes in; ``loss``: nats per token;
    ``answers``: token ids; ``noise_kl``: nats per token from itself when its embeddings are disturbed, None of a model
    that rounds no inputs; ``device``: what it computed on, whose last bits are in all of it.
    """

    logits: "Tensor"
    loss: float
    answers: list[list[int]]
    noise_kl: float | None = None
    device: str = ""

    @property
    def log_probs(self) -> "Tensor":
        """Float32, nats."""
        return log_probs_of(self.logits)

    @property
    def finite_loss(self) -> float | None:
        return _finite(self.loss)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What of a behaviour is no tensor."""

    loss: float | None
    answers: list[list[int]]
    noise_kl: float | None
    device: str


def write_behaviour(out: Path, behaviour: Behaviour) -> None:
    """``logits.safetensors`` and ``behaviour.json``; a loss that is no number is null."""
    from safetensors.torch import save_file

    save_file({"logits": behaviour.logits.contiguous()}, out / _LOGITS)
    write_json(
        out / _FACTS, asdict(_Facts(behaviour.finite_loss, behaviour.answers, behaviour.noise_kl, behaviour.device))
    )


def read_behaviour(directory: Path) -> Behaviour:
    """As it was written."""
    from safetensors.torch import load_file

    facts = read_json(directory / _FACTS, _Facts)
    loss = math.nan if facts.loss is None else facts.loss
    return Behaviour(load_file(directory / _LOGITS)["logits"], loss, facts.answers, facts.noise_kl, facts.device)


def observed(model_dir: Path, num_probe_tokens: int) -> Behaviour:
    """Load the model, look at it, and unload it."""
    from transformers import AutoTokenizer

    with open_model(model_dir) as model:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
        logits, loss = _read_held_out(model, tokenizer)
        answers = _answer_probes(model, tokenizer, num_probe_tokens)
        behaviour = Behaviour(logits, loss, answers, _noise(model, tokenizer, logits), device())
        del model
    return behaviour


def device() -> str:
    """What models are looked at on here."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def check_logits(checkpoint: Behaviour) -> Check:
    """No logit is NaN or infinite."""
    num_bad = int((~checkpoint.logits.isfinite()).any(dim=-1).sum())
    detail = "positions of held-out text with a logit that is not finite"
    return Check("logits_finite", num_bad == 0, num_bad, 0, detail)


def check_loss(base: Behaviour, checkpoint: Behaviour, max_lost: float) -> Check:
    """Of the base's advantage over uniform guessing at most ``max_lost`` is lost (a base without one may lose all)."""
    advantage = math.log(base.logits.shape[-1]) - base.loss
    limit = base.loss + max_lost * max(advantage, 1.0)
    passed = checkpoint.loss <= limit  # False for NaN as well
    return Check(
        "held_out_loss",
        passed,
        checkpoint.finite_loss,
        _finite(limit),
        f"nats per token; the base has {base.loss:.3f}",
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
    of_base, of_checkpoint = base.log_probs, checkpoint.log_probs
    divergence = divergences(of_base, of_checkpoint).mean().item()
    same = agreements(of_base, of_checkpoint).mean().item()
    passed = math.isfinite(divergence) and (max_mean_kl is None or divergence <= max_mean_kl)
    yield Check("mean_kl", passed, _finite(divergence), max_mean_kl, "nats per token of held-out text")
    yield Check("top1_agreement", True, same, None, "share of held-out tokens with the same best guess")


def check_noise(checkpoint: Behaviour) -> Iterator[Check]:
    """How far two correct runs of a model that rounds its inputs may be apart: a difference below it means nothing."""
    if checkpoint.noise_kl is not None:
        detail = "nats per token from itself, every embedding disturbed by one rounding of its dtype"
        yield Check("noise_kl", True, _finite(checkpoint.noise_kl), None, detail)


def is_degenerate(answer: list[int]) -> bool:
    """Whether an answer is empty or goes round in a short loop."""
    trigrams = list(zip(answer, answer[1:], answer[2:], strict=False))
    return not answer or (len(trigrams) > 1 and len(set(trigrams)) / len(trigrams) < _MIN_DISTINCT)


def _noise(model: Any, tokenizer: Any, logits: "Tensor") -> float | None:
    """Rounding inputs amplifies: what differs by 1e-7 flips a tie here and there, and one flip is a whole step."""
    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    if not any(scheme and scheme.input_activations for scheme in schemes):
        return None
    hook = model.get_input_embeddings().register_forward_hook(_disturb)
    disturbed, _ = _read_held_out(model, tokenizer)
    hook.remove()
    return float(divergences(log_probs_of(logits), log_probs_of(disturbed)).mean())


def _disturb(module: Any, inputs: Any, embeddings: "Tensor") -> "Tensor":
    """Each value moved to the next of its dtype, up or down by a seed: the least that two engines may differ by."""
    import torch

    is_up = torch.rand(embeddings.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    ends = torch.where(is_up, torch.inf, -torch.inf).to(embeddings)
    return torch.nextafter(embeddings, ends)


def _read_held_out(model: Any, tokenizer: Any) -> "tuple[Tensor, float]":
    import torch

    text = _HELD_OUT_PATH.read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
    num_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    windows = ids.split(min(_MAX_WINDOW_TOKENS, num_positions or _MAX_WINDOW_TOKENS))
    logits = [next_token_logits(model, window) for window in windows]
    pairs = zip(logits, windows, strict=True)
    loss = torch.cat([surprises(log_probs_of(known), window) for known, window in pairs]).mean()
    return torch.cat(logits), loss.item()


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
