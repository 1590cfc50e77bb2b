"""IFEval as in lm-eval's ``leaderboard_ifeval``, with the one number that the Open LLM Leaderboard makes of it.

Documents, prompts and checks are lm-eval's, called and not copied.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """lm-eval's metrics; ``strict_acc`` keeps for each instruction whether the response follows it."""
    found: dict[str, Any] = import_module("lm_eval.tasks.leaderboard.ifeval.utils").process_results(doc, results)
    return {"strict_acc": found["inst_level_strict_acc"], **found}


def share_of_instructions(followed: Sequence[Sequence[bool]]) -> float:
    """Over all instructions of all prompts."""
    return sum(map(sum, followed)) / sum(map(len, followed))


def mean_of_both_levels(followed: Sequence[Sequence[bool]]) -> float:
    """Of the share of prompts whose every instruction is followed, and the share of instructions."""
    share_of_prompts = sum(map(all, followed)) / len(followed)
    return (share_of_prompts + share_of_instructions(followed)) / 2
