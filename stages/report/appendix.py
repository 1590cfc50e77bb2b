"""What stands at a report's end: gates of checkpoints, drift, steps without a result, the artifacts that were read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.drift import DriftFacts, read_drift
from stages.gate.artifact import Check, read_checks
from stages.report.cells import Cell, Heading, Line, Table, plain
from stages.report.config import FailureRow, TrialRow
from stages.report.numbers import MISSING, count, decimals, interval, number, percent, percent_interval


def gates(trials: Sequence[TrialRow], inputs: Mapping[str, Path]) -> Table:
    """The checks each checkpoint passed, a line for each trial and a column for each check."""
    found = {
        trial.name: {check.name: check for check in read_checks(inputs[f"gate/{trial.name}"])}
        for trial in trials
        if f"gate/{trial.name}" in inputs
    }
    names = list(dict.fromkeys(name for checks in found.values() for name in checks))
    lines = [
        [trial, *(_check(checks[name]) if name in checks else MISSING for name in names)]
        for trial, checks in found.items()
    ]
    return plain(["trial", *names], lines)


def drifts(trials: Sequence[TrialRow], inputs: Mapping[str, Path]) -> Table:
    """How far each checkpoint's expectations are from its base's on the same text, a line for each trial."""
    lines = [
        [trial.name, *_drift(read_drift(inputs[f"drift/{trial.name}"]))]
        for trial in trials
        if f"drift/{trial.name}" in inputs
    ]
    return plain(["trial", "divergence", "same best guess", "loss", "base", "documents", "tokens"], lines)


def sources(inputs: Mapping[str, Path]) -> Table:
    """The artifacts read; a directory's name ends with the fingerprint of what it holds."""
    lines = [[name, inputs[name].name] for name in sorted(inputs)]
    return plain(["input", "directory"], lines, left=["directory"])


def lacking(failures: Sequence[FailureRow]) -> Table:
    """Steps that failed, were skipped or never ran, and why."""
    names = ["step", "trial", "task", "status", "class", "reason"]
    headings = [Heading(name, is_left=True) for name in names]
    lines = [
        Line(
            [
                *(Cell(text or MISSING) for text in (each.step, each.trial, each.task)),
                Cell(each.status, look="worse" if each.status == "failed" else ""),
                Cell(each.failure_class or MISSING),
                Cell(each.message, look="wrap"),
            ]
        )
        for each in failures
    ]
    return Table(headings, lines)


def _drift(facts: DriftFacts) -> list[str]:
    kl, agreement = (facts.mean_kl_low, facts.mean_kl_high), (facts.top1_agreement_low, facts.top1_agreement_high)
    places, of_share = (
        decimals([kl]),
        decimals([(agreement[0] and 100 * agreement[0], agreement[1] and 100 * agreement[1])]),
    )
    return [
        f"{number(facts.mean_kl, places)} {interval(*kl, places)}",
        f"{percent(facts.top1_agreement, of_share)} {percent_interval(*agreement, of_share)}",
        number(facts.loss, 4),
        number(facts.base_loss, 4),
        count(facts.num_documents),
        count(facts.num_tokens),
    ]


def _check(check: Check) -> str:
    """``value / what is expected``; a check that is not of a number has passed, failed or could not be made."""
    outcome = {True: "passed", False: "failed", None: MISSING}[check.passed]
    if check.value is None:
        return outcome
    numbers = [f"{each:.4g}" for each in (check.value, check.expected) if each is not None]
    return " / ".join(numbers) if check.passed else f"{' / '.join(numbers)} ({outcome})"
