"""How long the steps of a plan take: by the table of rates, corrected by what its own store has measured.  Pure."""

import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.config.schema import Config
from pipeline.planning.plan import Plan
from pipeline.planning.rates import CPU, ELSEWHERE, RECORDS, Rate, Rates, Work, measured_rates
from pipeline.steps.stages import FETCH_MODEL, FETCH_PUBLISHED, QUANTIZE, Occupies, Stage
from pipeline.steps.step import Step, StepRef
from pipeline.store.timing import Timing
from stages.fetch import ModelSource
from stages.published import PublishedSource
from stages.quantize import Algorithm, RecipeConfig, needs_calibration
from stages.units import GIB

START, EXCHANGE, END = "start", "exchange", "end"  # of a batch: see rates.yaml
SAME_SIZE = 0.05  # sizes that differ by less, relatively, are not said to differ
OPENED_S = 1.0  # a step that waited longer before its stage began has opened a session

Key = tuple[Rate, str | None, int]  # what was measured alike: a row, a device, a class of sizes


@dataclass(slots=True)
class Grounds:
    """What an estimate rests on; each counts steps."""

    unknown: Counter[tuple[str, str | None]] = field(default_factory=Counter)  # stage and device
    scaled: Counter[tuple[str, float, int]] = field(default_factory=Counter)  # stage, from and to so many parameters
    corrected: Counter[str] = field(default_factory=Counter)  # stage
    shared: Counter[str] = field(default_factory=Counter)  # stage: by ranks that are taken to lose nothing
    sources: Counter[str] = field(default_factory=Counter)


class Estimator:
    """Seconds of a plan's steps.

    ``devices``: by trial the GPU's product, or CPU; None where it is not known.  ``timings``: of the plan's published
    steps.
    """

    def __init__(
        self,
        plan: Plan,
        devices: Mapping[str, str | None],
        timings: Mapping[StepRef, Timing],
        rates: Rates | None = None,
    ) -> None:
        self._plan, self._devices = plan, devices
        self._rates = rates or measured_rates()
        self._sizes = {name: trial.num_parameters for name, trial in plan.trials.items()}
        self.grounds = Grounds()
        self._corrections = self._measured(timings)

    def batch_s(self, steps: Sequence[Step]) -> tuple[float | None, ...]:
        """Seconds of each step of a batch; the first one's hold the opening of its session."""
        seconds = [self._predicted(self._work(step)) for step in steps]
        if steps[0].stage.sessions:
            start_s = self._predicted(self._work(steps[0], START))
            seconds[0] = None if start_s is None or seconds[0] is None else start_s + seconds[0]
            self._add_exchanges(steps, seconds)
        for step, each in zip(steps, seconds, strict=True):
            if each is None:
                self.grounds.unknown[step.stage.name, self._work(step).device] += 1
        return tuple(None if each is None else round(each, 3) for each in seconds)

    def _add_exchanges(self, steps: Sequence[Step], seconds: list[float | None]) -> None:
        """The first step of every further checkpoint waits for its weights, as far as that was measured."""
        for index, (before, step) in enumerate(itertools.pairwise(steps), 1):
            if (
                step.inputs.get("checkpoint") != before.inputs.get("checkpoint")
                and (own_s := seconds[index]) is not None
            ):
                seconds[index] = own_s + (self._predicted(self._work(step, EXCHANGE)) or 0.0)

    def end_s(self, last: Step) -> float:
        """Seconds from the end of a batch's last step to the end of its process, as far as they were measured."""
        return self._predicted(self._work(last, END)) or 0.0

    def _predicted(self, work: Work) -> float | None:
        rate = self._rates.nearest(work)
        seconds = None if rate is None else rate.seconds(work)
        if rate is None or seconds is None:
            return None
        ratio = self._corrections.get(_key(rate, work))
        if ratio is None and not rate.is_of_device(work.device):
            return None
        self._note(rate, work, ratio is not None)
        return seconds * (1.0 if ratio is None else ratio)

    def _note(self, rate: Rate, work: Work, is_corrected: bool) -> None:
        if is_corrected:
            self.grounds.corrected[work.stage] += 1
            return
        self.grounds.sources[rate.source] += 1
        if not (rate.sized_s or rate.sized_each) or rate.num_parameters is None or work.num_parameters is None:
            return
        if abs(work.num_parameters / rate.num_parameters - 1) > SAME_SIZE:
            self.grounds.scaled[work.stage, rate.num_parameters, work.num_parameters] += 1
        if work.num_ranks > 1:
            self.grounds.shared[work.stage] += 1

    def _measured(self, timings: Mapping[StepRef, Timing]) -> dict[Key, float]:
        """By what is alike the median of measured / predicted."""
        ratios: dict[Key, list[float]] = defaultdict(list)
        for ref, timing in timings.items():
            step = self._plan.steps[ref]
            for work, seconds in self.parts(step, timing):
                rate = self._rates.nearest(work)
                predicted_s = None if rate is None else rate.seconds(work)
                if (
                    rate is not None
                    and predicted_s
                    and (work.device in ("", CPU, ELSEWHERE, RECORDS) or timing.is_on(work.device))
                ):
                    ratios[_key(rate, work)].append(seconds / predicted_s)
        return {key: statistics.median(found) for key, found in ratios.items()}

    def parts(self, step: Step, timing: Timing) -> Iterable[tuple[Work, float]]:
        """What of a published step's time was which work."""
        if not step.stage.sessions:
            yield self._work(step), timing.seconds
            return
        yield self._work(step), timing.stage_s
        if timing.before_s > OPENED_S:
            yield self._work(step, EXCHANGE if timing.num_exchanges else START), timing.before_s

    def _work(self, step: Step, part: str | None = None) -> Work:
        """What a step, or the start or end of its batch, comes to."""
        trial = self._plan.trials.get(step.trial)
        config = None if trial is None else trial.trial.config
        return Work(
            stage=_like(step.stage).name,
            kind=part or _kind(step),
            task=getattr(step.config, "task", "") if step.num_documents else "",
            device=self._device(step, config),
            num_parameters=self._num_parameters(step),
            num_ranks=1 if config is None or step.stage.occupies is not Occupies.engine else config.engine.num_ranks,
            amounts={} if part else _amounts(step, config),
        )

    def _num_parameters(self, step: Step) -> int | None:
        """What is brought of a published checkpoint counts by its bytes, as if they were of 16 bits."""
        trial = self._plan.trials.get(step.trial)
        if step.stage is not FETCH_PUBLISHED or trial is None:
            return self._sizes.get(step.trial)
        return None if (gib := trial.checkpoint_gib) is None else int(gib * GIB / 2)

    def _device(self, step: Step, config: Config | None) -> str | None:
        if step.stage.occupies is Occupies.core:
            return ""
        if step.stage.occupies is Occupies.engine and config is not None and config.engine.is_elsewhere:
            return ELSEWHERE if config.engine.is_endpoint else RECORDS
        return self._devices.get(step.trial)


def _key(rate: Rate, work: Work) -> Key:
    return rate, work.device, round(math.log2(work.num_parameters)) if work.num_parameters else 0


def _like(stage: Stage) -> Stage:
    """Whose rows of the table it is read by: bytes that are brought are bytes, quantized or not."""
    return FETCH_MODEL if stage is FETCH_PUBLISHED else stage


def _kind(step: Step) -> str | None:
    """Which of its stage's kinds of work a step is; None where it is not known."""
    match _like(step.stage).name:
        case "answer":
            return None if step.output_tokens is None else "texts" if step.output_tokens else "choices"
        case "quantize":
            return _algorithm(step.config.recipe)
        case "fetch_model":
            return _place(step.config)
        case "fetch_dataset":
            return "mirror" if step.config.mirror_path else "hub"
        case "calibrate":
            return str(step.config.method.value)
    return ""


def _algorithm(recipe: RecipeConfig) -> str:
    """A quantizer that looks at activations reads the calibration set, whatever rounds the weights."""
    reads = needs_calibration(recipe) and recipe.algorithm is not Algorithm.gptq
    return f"{recipe.algorithm.value} with calibration" if reads else str(recipe.algorithm.value)


def _place(source: ModelSource | PublishedSource) -> str:
    return "directory" if source.path else "hub" if source.repo_id else "package"


def _amounts(step: Step, config: Config | None) -> dict[str, float]:
    """What the rows of the table count; texts and rows count as long as they may be."""
    if config is not None and step.stage is QUANTIZE:
        calibration = config.calibration
        return {"calibration_tokens": calibration.num_calibration_samples * calibration.max_seq_length}
    num_documents = step.num_documents or getattr(step.config, "num_expected", 0)
    return {"documents": num_documents, "output_tokens": num_documents * (step.output_tokens or 0)}
