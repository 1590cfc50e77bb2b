"""Thoughts and answer of a model that thinks aloud: where one ends and the other begins."""

from dataclasses import dataclass
from typing import Any

AUTO = "auto"
# How chat models of today begin and end their thoughts.
KNOWN_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """The texts between which a model thinks; ``start`` None where only the end is known."""

    start: str | None
    end: str

    def opening(self, prompt: str) -> str | None:
        """What of the thoughts a prompt has begun: nothing, or ``start``; None where it has ended them already."""
        asked = prompt.rstrip()
        if asked.endswith(self.end):
            return None
        return self.start if self.start and asked.endswith(self.start) else ""


@dataclass(frozen=True, slots=True)
class Parts:
    """A text's thoughts, None where it has none, and the answer behind them, None where they never ended."""

    thoughts: str | None
    answer: str | None


def find_reasoning(setting: str | None, tokenizer: Any) -> Reasoning | None:
    """What ``reasoning_end`` says: the end of thoughts by name, None for none, or the one that a chat model has."""
    starts = {end: start for start, end in KNOWN_TAGS}
    if setting != AUTO:
        return None if setting is None else Reasoning(start=starts.get(setting), end=setting)
    template, vocabulary = tokenizer.get_chat_template(), tokenizer.get_vocab()
    for start, end in KNOWN_TAGS:
        if end in vocabulary or end in template or start in template:
            return Reasoning(start=start, end=end)
    return None


def parted(text: str, opening: str | None, was_cut: bool, reasoning: Reasoning) -> Parts:
    """A text that was written after a prompt with that ``opening``.

    Without an end tag a text that was begun as thoughts has no answer; where no beginning is known, one that was cut.
    """
    if opening is None:
        return Parts(None, text)
    thoughts, found, answer = text.rpartition(reasoning.end)
    if found:
        return Parts(thoughts.removeprefix(reasoning.start or "").strip(), answer.lstrip())
    is_begun = bool(opening) or (text.lstrip().startswith(reasoning.start) if reasoning.start else was_cut)
    return Parts(text, None) if is_begun else Parts(None, text)
