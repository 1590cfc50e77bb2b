"""Roles: what each step of a trial is for, as a path whose first part is its kind and whose second may be a slot.

``model`` (only where the checkpoint is made of it), ``checkpoint``, ``calibration``, ``observed``, ``gate``, ``drift``,
``drift_text``, ``ceilings``, ``answer/SLOT/LEAF/0003``, ``score/SLOT``, ``compare/SLOT``, ``profile/WORKLOAD/MODE``; of
what was evaluated again ``answer_again/SLOT/1/LEAF/0003`` and ``score_again/SLOT/1``, of later starts of a server
``profile/WORKLOAD/MODE/2``.
"""

from collections.abc import Iterable, Mapping

from pipeline.steps.step import StepRef

Roles = Mapping[str, StepRef]


def kind_of(role: str) -> str:
    """The first part: what kind of step plays it."""
    return role.partition("/")[0]


def slot_of(role: str) -> str | None:
    """The task or workload of the sweep that the step is for; None where it is for all of them."""
    return role.partition("/")[2].partition("/")[0] or None


def slots(roles: Iterable[str]) -> list[str]:
    """Every task and workload, once, in the plan's order."""
    return list(dict.fromkeys(slot for role in roles if (slot := slot_of(role)) is not None))


def under(roles: Roles, *path: str) -> dict[str, StepRef]:
    """The steps whose role goes on from ``path``, by the rest of it."""
    prefix = "/".join(path) + "/"
    return {role.removeprefix(prefix): ref for role, ref in roles.items() if role.startswith(prefix)}


def shards(roles: Roles, slot: str) -> list[StepRef]:
    """Every evaluation of a task slot, in the order of its leaves and documents, and then those of reruns."""
    return [*under(roles, "answer", slot).values(), *under(roles, "answer_again", slot).values()]


def answers_role(slot: str, rerun: int = 0) -> str:
    """What the roles of all shards of one run begin with."""
    return f"answer_again/{slot}/{rerun}" if rerun else f"answer/{slot}"


def shard_role(slot: str, leaf: str, index: int, rerun: int = 0) -> str:
    """The role of a leaf's shard ``index``."""
    return f"{answers_role(slot, rerun)}/{leaf}/{index:04d}"


def scores_role(slot: str, rerun: int = 0) -> str:
    """The role of the scores of one run."""
    return f"score_again/{slot}/{rerun}" if rerun else f"score/{slot}"
