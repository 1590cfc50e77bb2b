"""Prompts of random words, as long as asked and different from each other, so that no cache helps."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_WORD = re.compile(r"[Ġ▁][a-z]{2,}")  # a byte-level or sentencepiece token that is a word with its space
_ENOUGH_WORDS = 1000
_ATTEMPTS = 4


def random_prompts(tokenizer: Any, number: int, num_tokens: int, seed: int) -> list[str]:
    """Texts that ``tokenizer`` cuts into ``num_tokens`` tokens each, or a few more or less where it merges words."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(_words(tokenizer), size=(number, num_tokens)).tolist()
    texts: list[str] = tokenizer.batch_decode(ids)
    for _ in range(_ATTEMPTS):
        cut = [_fitted(found, num_tokens) for found in _encode(tokenizer, texts)]
        if all(found is None for found in cut):
            break
        fitted = tokenizer.batch_decode([found or [] for found in cut])
        texts = [old if found is None else new for old, new, found in zip(texts, fitted, cut, strict=True)]
    return texts


def _words(tokenizer: Any) -> list[int]:
    """Whole words where the vocabulary has many, else single letters; sorted, so that a seed means the same ever."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    words = sorted(index for token, index in vocabulary.items() if _WORD.fullmatch(token))
    letters = sorted(index for token, index in vocabulary.items() if re.fullmatch("[a-z]", token))
    return words if len(words) >= _ENOUGH_WORDS else letters


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return found


def _fitted(ids: Sequence[int], num_tokens: int) -> list[int] | None:
    """``ids`` cut or filled up with their own beginning; None if they fit."""
    if len(ids) == num_tokens:
        return None
    repeated = list(ids) * (num_tokens // max(len(ids), 1) + 1)
    return repeated[:num_tokens]
