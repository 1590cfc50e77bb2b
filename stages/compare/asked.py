"""What rows are asked for: of each leaf and of the whole task its evidence, and the scale that it is judged on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stages.compare.config import CompareConfig
from stages.compare.design import Estimate
from stages.compare.evidence import Evidence
from stages.compare.whole import RAW, Compared, Scale, compared, difference_of, on_scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """Differences between two runs of the trial, of the base, and between the documents that the trial changed and
    those that the base did itself; None where there is no second run.

    ``noise``: the first two on the scale that a verdict is of.
    """

    rerun: Estimate | None = None
    base_rerun: Estimate | None = None
    excess: Estimate | None = None
    noise: tuple[Estimate, ...] = ()

    @property
    def all(self) -> tuple[Estimate | None, ...]:
        """All that have an interval."""
        return self.rerun, self.base_rerun, self.excess, *self.noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A row that is asked for: its evidence, raw and normalized, and what a difference is judged by.

    ``baseline``: what guessing scores, on the raw scale; None of leaves with unlike ones, whose task is judged on the
    normalized scale.
    """

    raw: Compared
    normalized: Compared | None = None
    baseline: float | None = 0.0
    runs: Runs = Runs()


def asked_of(config: CompareConfig, evidence: Sequence[Evidence], is_normalized: bool) -> Iterator[Ask]:
    """Of each leaf, then of the whole task; a task of one leaf is that leaf."""
    leaves = [compared([each], config.weight_by_size, [RAW]) for each in evidence]
    whole = leaves[0] if len(leaves) == 1 else compared(evidence, config.weight_by_size, [RAW] * len(leaves))
    runs = [runs_of([each], config.weight_by_size, [RAW]) for each in evidence]
    of_whole = runs_of(evidence, config.weight_by_size, [RAW] * len(leaves))
    if not is_normalized:
        yield from (Ask(raw=each, runs=of) for each, of in zip([*leaves, whole], [*runs, of_whole], strict=True))
        return
    scales = [Scale(config.baseline_of(leaf)) for leaf in config.leaves]
    for leaf, scale, of in zip(leaves, scales, runs, strict=True):
        yield Ask(raw=leaf, normalized=on_scale(leaf, scale), baseline=scale.origin, runs=of)
    if not config.leaf_baselines or len(leaves) == 1:
        yield Ask(raw=whole, normalized=on_scale(whole, scales[0]), baseline=scales[0].origin, runs=of_whole)
    else:
        of_whole = replace(of_whole, noise=runs_of(evidence, False, scales).noise)
        yield Ask(raw=whole, normalized=compared(evidence, False, scales), baseline=None, runs=of_whole)


def runs_of(evidence: Sequence[Evidence], weight_by_size: bool, scales: Sequence[Scale]) -> Runs:
    """Of leaves that are one."""
    rerun, base_rerun, excess = (
        difference_of([getattr(each, name) for each in evidence], weight_by_size, scales)
        for name in ("rerun", "base_rerun", "excess")
    )
    noise = tuple(each for each in (rerun, base_rerun) if each is not None)
    return Runs(rerun=rerun, base_rerun=base_rerun, excess=excess, noise=noise)
