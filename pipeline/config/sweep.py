"""Expand a sweep into trials, each composed exactly as the command line would compose it alone."""

import copy
import itertools
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from pipeline.config.command_line import as_text, check, key_of, reaching_in
from pipeline.config.schema import AdjustmentConfig, Config, SweepConfig, TaskConfig
from pipeline.errors import UserError
from pipeline.steps.fingerprint import canonical_json
from stages.quantize import Algorithm, needs_calibration

BASE_RECIPE = "bf16"


@dataclass(frozen=True, slots=True)
class Trial:
    """One point of a sweep: a model under a recipe.  ``base`` names the trial it is measured against."""

    name: str
    config: Config
    point: Mapping[str, Any]
    base: str = ""

    @property
    def is_base(self) -> bool:
        return self.base == self.name


def shared_config(composed: DictConfig, cli: Sequence[str]) -> Config:
    """What ``cli`` composes to without any point: a field of a group that is an axis is said of the points alone."""
    axes = composed.sweep.axes
    kept = [text for text in cli if not _is_of_axis(text, axes)]
    return _as_config(composed if len(kept) == len(cli) else compose("config", overrides=kept))


def expand(cli: Sequence[str], shared: Config) -> list[Trial]:
    """All trials of the sweep, and the base trial of every model that the grid itself does not have.

    ``cli`` are the command line's own overrides, which win over the sweep's adjustments; ``shared`` is the config they
    compose to without any point.  Raises UserError for an axis overridden on the command line, for two points that are
    the same trial, and for two that only seem to be.
    """
    trials = list(_Expansion(cli, shared).trials())
    for kind, named in _NAMED.items():
        _refuse_one_name_for_two(kind, [(trial, *named(trial)) for trial in trials], shared.sweep.name)
    return trials


def identity_of(config: Config) -> str:
    """Canonical text of everything that makes two trials different; what a recipe does not use is left out."""
    used = {
        "model": config.model.source,
        "model_path": config.model.source.path,
        "recipe": None if config.recipe.is_base else config.recipe,
        "published": None if (place := config.published) is None else [place, place.path],
        "calibration": config.calibration if needs_calibration(config.recipe) else None,
        "seed": config.seed,
        "engine": config.engine,
        "weights": config.model.weights,
        "served": [config.gpu, config.server, config.workloads] if config.workloads else None,
        "tasks": {
            slot: [task, task.task, _limit(task), task.leaves, task.overrides, task.metric]
            for slot, task in sorted(config.tasks.items())
        },
    }
    return canonical_json(used)


def _limit(task: TaskConfig) -> list[Any]:
    return [] if task.limit is None else [task.limit, task.limit_order, task.limit_seed]


# What is found by its name from here on, and what it stands for.
_NAMED: Mapping[str, Callable[[Trial], tuple[str, Any]]] = {
    "model": lambda trial: (trial.config.model.name, trial.config.model),
    "gpu": lambda trial: (trial.config.gpu.name, trial.config.gpu),
    "trial": lambda trial: (trial.name, trial),
}


class _Expansion:
    """One sweep's expansion: composes each point once."""

    def __init__(self, cli: Sequence[str], shared: Config) -> None:
        _refuse_overridden_axes(cli, shared.sweep)
        _check_grid(shared.sweep)
        self._sweep = shared.sweep
        self._shared = shared
        self._trials: dict[str, Trial] = {}
        self._composed: dict[str, DictConfig] = {}
        touched = [*self._sweep.axes, *(override for rule in self._sweep.adjust for override in rule.set)]
        # Composing the tasks takes most of a composition's time (0.5 of 0.6 s for 13 tasks), and they rarely vary.
        self._tasks_vary = any(_is_about_tasks(override) for override in touched)
        self._cli = list(cli) if self._tasks_vary else [text for text in cli if not _is_about_tasks(text)]

    def trials(self) -> Iterator[Trial]:
        axes = self._sweep.axes
        trials = [self._trial(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
        _refuse_duplicates(trials, self._sweep.name)
        names = {identity_of(trial.config): trial.name for trial in trials}
        for trial in trials:
            if trial.config.recipe.is_base:
                yield replace(trial, base=trial.name)
                continue
            base = self._base_of(trial)
            key = identity_of(base.config)
            if key not in names:
                names[key] = base.name
                yield replace(base, base=base.name)
            yield replace(trial, base=names[key])

    def _base_of(self, trial: Trial) -> Trial:
        """The same point under the base recipe; what is said of recipes and calibrations has no meaning there."""
        kept = {axis: value for axis, value in trial.point.items() if not _is_about_recipes(axis)}
        return self._trial(kept | {"recipe": BASE_RECIPE}, [text for text in self._cli if not _is_about_recipes(text)])

    def _trial(self, point: Mapping[str, Any], cli: Sequence[str] | None = None) -> Trial:
        cli = self._cli if cli is None else cli
        rules = [rule for rule in self._sweep.adjust if _applies(rule, point)]
        adjusted = [reaching_in(override) for rule in rules for override in rule.set]
        chosen = [reaching_in(_chosen(axis, value)) for axis, value in sorted(point.items())]
        overrides = [*chosen, *adjusted, *_reaching(cli, [*chosen, *adjusted], self._sweep)]
        key = "\n".join(overrides)
        if key not in self._trials:
            config = self._config(point, overrides)
            self._trials[key] = Trial(_trial_name(config, point), config, point)
        return self._trials[key]

    def _config(self, point: Mapping[str, Any], overrides: Sequence[str]) -> Config:
        """Composed once for all points that differ in plain values only: composing takes Hydra 0.3 s."""
        plain = {axis: value for axis, value in point.items() if self._is_plain(axis, overrides)}
        grouped = [text for text in overrides if key_of(text) not in plain]
        key = "\n".join(grouped)
        if key not in self._composed:
            self._composed[key] = self._compose(grouped)
        composed = copy.deepcopy(self._composed[key])
        for axis, value in plain.items():
            OmegaConf.update(composed, axis, value, force_add=reaching_in(f"{axis}=") != f"{axis}=")
        config = _as_config(composed)
        return config if self._tasks_vary else replace(config, tasks=self._shared.tasks, suites=self._shared.suites)

    def _is_plain(self, axis: str, overrides: Sequence[str]) -> bool:
        """Whether an axis sets a value that nothing else of the point touches, rather than choosing a group's file."""
        others = [key_of(text) for text in overrides if key_of(text) != axis]
        is_alone = len(others) == len(overrides) - 1 and not any(key.startswith(f"{axis}.") for key in others)
        return is_alone and ("." in axis or isinstance(getattr(self._shared, axis, None), (int, float, str)))

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        if self._tasks_vary:
            return compose("config", overrides=list(overrides))
        composed = compose("config", overrides=[*overrides, "suite=none"])
        composed.tasks = {}
        return composed


def _trial_name(config: Config, point: Mapping[str, Any]) -> str:
    others = [f"{axis.split('.')[-1]}={value}" for axis, value in point.items() if axis not in ("model", "recipe")]
    return "/".join([config.model.name, config.recipe.name, *others])


def _is_about_recipes(override: str) -> bool:
    return key_of(override).split(".")[0] in ("recipe", "calibration")


def _is_about_tasks(override: str) -> bool:
    return key_of(override).lstrip("/").split(".")[0].split("@")[0] in ("suite", "suites", "task", "tasks")


def _applies(rule: AdjustmentConfig, point: Mapping[str, Any]) -> bool:
    return all(point.get(axis) == value for axis, value in rule.when.items())


def _reaching(cli: Sequence[str], overrides: Sequence[str], sweep: SweepConfig) -> list[str]:
    """The command line's overrides that reach a point.

    ``recipe.group_size=32`` in a sweep over recipes means those recipes that have groups: an override of one field of
    a group that is an axis passes over the points where the field is null, unless it is null at every point, and over
    the base recipe, of which nothing can be said.
    """
    partial = [text for text in cli if _is_of_axis(text, sweep.axes)]
    others = [text for text in cli if text not in partial]
    return [text for text in cli if text not in partial or _reaches(text, [*overrides, *others], others, sweep)]


def _is_of_axis(override: str, axes: Container[str]) -> bool:
    group, _, field = key_of(override).partition(".")
    return bool(field) and group in axes


def _reaches(override: str, here: list[str], others: list[str], sweep: SweepConfig) -> bool:
    key = key_of(override)
    group = key.split(".")[0]
    composed = compose("config", overrides=here)
    if group == "recipe" and composed.recipe.algorithm is Algorithm.none:  # nothing of how it would be quantized
        return key.split(".")[1] in ("published", "source") and OmegaConf.select(composed, key) is not None
    if OmegaConf.select(composed, key) is not None:
        return True
    options = (compose("config", overrides=[*others, _chosen(group, option)]) for option in sweep.axes[group])
    return all(OmegaConf.select(option, key) is None for option in options)


def _as_config(composed: DictConfig) -> Config:
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def _chosen(axis: str, value: Any) -> str:
    """A point's value as an override has it; a file may be called what elsewhere is a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and _options(axis):
        value = str(value)
    return f"{axis}={as_text(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def _options(axis: str) -> list[str]:
    """The files of the group that an axis is over; none where it is over values."""
    group = axis.partition("@")[0]
    return GlobalHydra.instance().config_loader().get_group_options(group) if "." not in group else []


def _refuse_overridden_axes(cli: Sequence[str], sweep: SweepConfig) -> None:
    for override in cli:
        if key_of(override) in sweep.axes:
            axis = key_of(override)
            raise UserError(
                f"{axis} is an axis of sweep {sweep.name!r}: override the axis itself, 'sweep.axes.{axis}=[...]'"
            )


def _check_grid(sweep: SweepConfig) -> None:
    known = {field.name for field in fields(Config)}
    for axis, values in sweep.axes.items():
        if re.split(r"[.@]", axis)[0] not in known:
            raise UserError(f"sweep {sweep.name!r}: axis {axis!r} is no key of the config: check its spelling")
        if not values:
            raise UserError(f"sweep {sweep.name!r}: axis {axis} has no values; give it some or drop the axis")
    for rule in sweep.adjust:
        check(rule.set)
        for axis, value in rule.when.items():
            if axis not in sweep.axes:
                axes = ", ".join(sweep.axes) or "none"
                raise UserError(
                    f"sweep {sweep.name!r} adjusts where {axis} is {value!r}, but that is no axis; its axes are {axes}"
                )
            # A value that the command line took out of the axis is no mistake; one that never was an option is.
            options = _options(axis)
            if options and str(value) not in options and value not in sweep.axes[axis]:
                raise UserError(
                    f"sweep {sweep.name!r} adjusts where {axis} is {value!r}, but conf/{axis}/ has no such file; there "
                    f"are {', '.join(name for name in options if not name.endswith('_schema'))}"
                )


def _refuse_duplicates(trials: list[Trial], sweep_name: str) -> None:
    seen: dict[str, Trial] = {}
    for trial in trials:
        key = identity_of(trial.config)
        first = seen.get(key)
        seen[key] = trial
        if first is not None:
            raise UserError(
                f"sweep {sweep_name!r}: the points {dict(first.point)} and {dict(trial.point)} are the same trial; "
                "drop one of them"
            )


def _refuse_one_name_for_two(kind: str, named: Sequence[tuple[Trial, str, Any]], sweep_name: str) -> None:
    first: dict[str, tuple[Trial, Any]] = {}
    for trial, name, content in named:
        other, known = first.setdefault(name, (trial, content))
        if content != known:
            raise UserError(
                f"sweep {sweep_name!r}: {kind} {name!r} is not the same at the points {dict(other.point)} and "
                f"{dict(trial.point)}, but has one name in all results: change `name:` in the file of one of them"
            )
