"""What the statistics of a whole sweep cost when nothing is read: part of ``tests.benchmarks.grid``.

Documents as many as the plan's, already in memory, paired and scored; then every estimate, interval, p and verdict, the
influences, and the suites' joint errors, of a trial each.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stages.compare.asked import asked_of
from stages.compare.config import CompareConfig
from stages.compare.design import influences
from stages.compare.evidence import Evidence
from stages.compare.rows import error_of, rows
from stages.grid.joint import Influences, Member
from stages.grid.suites import mean_difference
from stages.report.config import SuiteConfig
from stages.statistics import generator
from tests.benchmarks.statistics import evidence_of

Task = tuple[CompareConfig, list[Evidence]]


def documents(config: CompareConfig, has_base: bool) -> Task:
    """Of every leaf as many, five per cent of which flip."""
    assert config.num_expected is not None
    rng, leaves, start = generator(0, config.task), [], 0
    for size in np.diff(np.linspace(0, config.num_expected, len(config.leaves) + 1).astype(int)):
        base = (rng.random(size) < 0.7).astype(float)
        trial = np.where(rng.random(size) < 0.05, 1 - base, base)
        found = evidence_of(trial, base, True, start + np.arange(size))
        leaves.append(found if has_base else replace(found, base=None, pairs=None))
        start += size
    return config, leaves


def cpu_s(trials: Sequence[Mapping[str, Task]], suites: Sequence[SuiteConfig]) -> float:
    """The processor's seconds for all verdicts on these trials."""
    started = time.process_time()
    for tasks in trials:
        members = {task: _judged(task, *each) for task, each in tasks.items()}
        for suite in suites:
            of_suite = [members[task] for task in suite.tasks]
            known = [each for each in of_suite if each is not None]
            if len(known) == len(of_suite):
                found = mean_difference(known, lower_is_better=False)
                assert found is not None
                found.judged(0.01, 0.95)
    return time.process_time() - started


def _judged(task: str, config: CompareConfig, evidence: list[Evidence]) -> Member | None:
    asked = list(asked_of(config, evidence, config.is_normalized))
    whole: dict[str, Any] = rows(asked, config, lower_is_better=False)[-1]
    error = error_of(asked[-1].raw, whole, "", config.confidence, False)
    if error is None:
        return None
    parts = [each.pairs.part for each in evidence if each.pairs is not None and each.pairs.part is not None]
    found = influences(parts, [1 / len(parts)] * len(parts), [1.0] * len(parts))
    ids = np.concatenate([part.clusters for part in parts])
    numbers = Influences(ids, ids, found)
    return Member(
        task=task,
        difference=whole["difference"],
        base=whole["paired_base_score"],
        error=error,
        influences=numbers,
    )
