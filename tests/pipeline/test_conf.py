"""Every option of every config group composes to the schema; every sweep expands and plans."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import conf
from pipeline.config import Config, register
from pipeline.errors import UserError
from pipeline.sweep import expand

CONF = Path(conf.__file__).parent
OPTIONS = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/*.yaml"))


@pytest.fixture(autouse=True)
def hydra_conf() -> Iterator[None]:
    register()
    with initialize_config_module(version_base="1.3", config_module="conf"):
        yield


def composed(*overrides: str) -> Config:
    config = OmegaConf.to_object(compose("config", overrides=list(overrides)))
    assert isinstance(config, Config)
    return config


def override_for(option: Path) -> str:
    group, name = option.parts
    special = {
        "sweep": f"+sweep={name}",
        "task": f"+task@tasks.{name}={name}",
        "workload": f"+workload@workloads.{name}={name}",
    }
    return special.get(group, f"{group}={name}")


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_composes_to_the_schema(option: Path) -> None:
    fresh = ["suite=none"] if option.parts[0] == "task" else []
    config = composed(*fresh, override_for(option))
    if option.parts[0] in ("model", "recipe"):
        assert getattr(config, option.parts[0]).name == option.name, "the option's name is its file's name"


@pytest.mark.parametrize("sweep", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
def test_every_sweep_expands(sweep: str) -> None:
    cli = [f"+sweep={sweep}"]
    trials = expand(cli, composed(*cli))
    assert len(trials) >= 2
    names = {trial.name for trial in trials}
    assert len(names) == len(trials)
    assert {trial.base for trial in trials} <= names
    assert all(trial.base.split("/")[0] == trial.name.split("/")[0] for trial in trials)


def test_a_suite_lists_only_tasks_that_it_has() -> None:
    for path in (CONF / "suite").glob("*.yaml"):
        config = composed(f"suite={path.stem}")
        for tasks in config.suites.values():
            assert set(tasks) <= config.tasks.keys()


def test_the_study_is_planned_as_the_study_did_it() -> None:
    cli = ["+sweep=llama31"]
    trials = {trial.name: trial.config for trial in expand(cli, composed(*cli))}
    assert len(trials) == 12
    assert trials["llama31_70b/w8a8_int"].recipe.smoothing_strength is not None
    assert trials["llama31_8b/w8a8_int"].recipe.smoothing_strength is None
    assert trials["llama31_405b/w8a8_int"].recipe.smoothing_strength is None
    assert trials["llama31_8b/w8a8_int"].calibration.method.name == "random_tokens"
    assert trials["llama31_405b/w4a16_int"].calibration.method.name == "dataset"
    assert trials["llama31_8b/w4a16_int"].recipe.observer == "mse"
    assert trials["llama31_405b/w4a16_int"].engine.tensor_parallel_size == 4


def test_a_model_without_its_base_in_the_grid_gets_one() -> None:
    cli = ["+sweep=smoke", "sweep.axes.recipe=[w8a8_fp]"]
    trials = expand(cli, composed(*cli))
    assert [trial.name for trial in trials] == ["smollm2_135m/bf16", "smollm2_135m/w8a8_fp"]
    assert trials[1].base == "smollm2_135m/bf16"


def test_an_axis_of_a_recipe_field_shares_one_base() -> None:
    cli = ["recipe=w4a16_int", "++sweep.axes={recipe.group_size: [32, 64]}"]
    trials = expand(cli, composed(*cli))
    assert [trial.base for trial in trials if not trial.is_base] == ["smollm2_135m/bf16"] * 2
    assert {trial.config.recipe.group_size for trial in trials if not trial.is_base} == {32, 64}


def test_an_override_of_a_field_reaches_the_points_that_use_it() -> None:
    cli = ["+sweep=smoke", "recipe.group_size=32"]
    sizes = {trial.config.recipe.name: trial.config.recipe.group_size for trial in expand(cli, composed(*cli))}
    assert sizes == {"bf16": None, "w8a8_fp": None, "w8a8_int": None, "w4a16_int": 32}


def test_an_axis_cannot_be_overridden_on_the_command_line() -> None:
    cli = ["+sweep=smoke", "recipe=bf16"]
    with pytest.raises(UserError, match="recipe is an axis of sweep 'smoke'"):
        expand(cli, composed(*cli))


def test_the_same_trial_twice_is_refused() -> None:
    cli = ["+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_fp,w8a8_fp]"]
    with pytest.raises(UserError, match="are the same trial"):
        expand(cli, composed(*cli))


def test_calibration_does_not_tell_two_recipes_apart_that_do_not_calibrate() -> None:
    cli = ["recipe=w8a8_fp", "++sweep.axes={calibration.seed: [0, 1]}"]
    with pytest.raises(UserError, match="are the same trial"):
        expand(cli, composed(*cli))
