"""MATH level 5 as in lm-eval's ``leaderboard_math_hard``, with answers judged in a process of its own.

Documents, prompts and few-shot examples are lm-eval's, called and not copied.  Its scorer counts an answer as wrong
when the judge fails or takes too long; here such a document is missing.
"""

from importlib import import_module
from typing import Any

from stages.tasks.math_level5.judge import Judge

_JUDGE = Judge()


def _lm_eval() -> Any:
    return import_module("lm_eval.tasks.leaderboard.math.utils")


def process_docs(dataset: Any) -> Any:
    """The documents of level 5."""
    return _lm_eval().process_docs(dataset)


def doc_to_text(doc: dict[str, Any]) -> str:
    """The problem."""
    text: str = _lm_eval().doc_to_text(doc)
    return text


def list_fewshot_samples() -> list[dict[str, Any]]:
    """Minerva's four worked examples."""
    samples: list[dict[str, Any]] = _lm_eval().list_fewshot_samples()
    return samples


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the answer agrees with the reference solution's.  Raises JudgeError when the judge cannot tell."""
    return {"exact_match": float(_JUDGE.agrees(doc["solution"], results[0]))}
