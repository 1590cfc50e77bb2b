"""Every option of every config group composes to the schema; every sweep expands and plans."""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import conf
from pipeline.config.bad_input import check_nothing_is_blank
from pipeline.config.schema import Config, TaskConfig, register
from pipeline.config.sweep import expand
from pipeline.errors import UserError
from pipeline.planning.task_catalog import own_tasks_dir
from stages.evaluate.catalog import describe
from stages.evaluate.task_index import build_index
from stages.evaluate.task_index import expand as expand_task

CONF = Path(conf.__file__).parent
HUB = Path(os.environ.get("QUANTSWEEP_DATA", Path(__file__).parents[3] / "../shared/data/hub"))
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
    slots = {"task": f"+task@tasks.{name}={name}", "workload": f"+workload@workloads.{name}={name}"}
    return {"sweep": f"+sweep={name}", **slots}.get(group, f"{group}={name}")


@pytest.mark.dear
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_composes_to_the_schema(option: Path) -> None:
    fresh = ["suite=none"] if option.parts[0] == "task" else []
    config = composed(*fresh, override_for(option))
    if option.parts[0] in ("model", "recipe"):
        assert getattr(config, option.parts[0]).name == option.name, "the option's name is its file's name"


def _part(section: Any, name: str) -> Any:
    return section[name] if isinstance(section, dict) else getattr(section, name)


def test_a_name_or_a_path_that_is_empty_is_refused_by_its_key() -> None:
    """What an unset variable of the shell leaves: it would stand for the working directory, or for a default."""
    config = composed("+sweep=smoke")
    check_nothing_is_blank(config)
    places = ("store.root", "store.cache", "sweep.name", "cluster.address", "tracking.uri", "data.mirror", "model.name")
    for key in (*places, "model.source.path", "tasks.tabular.task"):
        *sections, name = key.split(".")
        section = functools.reduce(_part, sections, config)
        before = getattr(section, name)
        for blank in ("", " \t"):
            setattr(section, name, blank)
            with pytest.raises(UserError, match=rf"^{re.escape(key)} is empty .*give it a value"):
                check_nothing_is_blank(config)
        setattr(section, name, before)
    config.data.task_paths = ["mine", ""]
    with pytest.raises(UserError, match=r"data\.task_paths\[1\] is empty"):
        check_nothing_is_blank(config)


@pytest.mark.dear
@pytest.mark.parametrize("sweep", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
def test_every_sweep_expands(sweep: str) -> None:
    cli = [f"+sweep={sweep}"]
    trials = expand(cli, composed(*cli))
    assert len(trials) >= 2
    names = {trial.name for trial in trials}
    assert len(names) == len(trials)
    assert {trial.base for trial in trials} <= names
    assert all(trial.base.split("/")[0] == trial.name.split("/")[0] for trial in trials)


@pytest.mark.dear
def test_a_suite_lists_only_tasks_that_it_has() -> None:
    for path in (CONF / "suite").glob("*.yaml"):
        config = composed(f"suite={path.stem}")
        for suite in config.suites.values():
            assert set(suite.tasks) <= config.tasks.keys()


def test_a_normalized_suite_has_a_baseline_for_every_leaf_of_its_tasks() -> None:
    config = composed("suite=leaderboard_v2")
    (suite,) = config.suites.values()
    assert suite.normalized
    for task in (config.tasks[slot] for slot in suite.tasks):
        assert task.random_baseline is not None or task.leaf_baselines.keys() == task.num_docs.keys()


@pytest.mark.dear
def test_the_baselines_of_choices_are_those_of_the_choices_lm_eval_offers() -> None:
    index = build_index()
    for name in ("bbh", "gpqa", "musr", "mmlu_pro"):
        task = composed("suite=none", f"+task@tasks.{name}={name}").tasks[name]
        for leaf in task.num_docs:
            choices = index[leaf].config["doc_to_choice"]
            if isinstance(choices, list):  # MuSR and MMLU-Pro make theirs by a function of the document
                baseline = task.leaf_baselines.get(leaf, task.random_baseline)
                assert baseline == pytest.approx(1 / len(choices)), leaf


def cards() -> dict[str, TaskConfig]:
    names = [path.stem for path in (CONF / "task").glob("*.yaml")]
    return composed("suite=none", *(f"+task@tasks.{name}={name}" for name in names)).tasks


@pytest.mark.dear
def test_a_card_that_declares_its_leaves_loses_nothing_that_a_group_lays_over_them() -> None:
    index = build_index()
    for name, task in cards().items():
        if task.num_docs and task.task in index:
            laid_over = expand_task(index, task.task)
            assert laid_over.keys() == task.num_docs.keys(), name
            assert all(not changed for changed in laid_over.values()), name


@pytest.mark.dear
def test_mmlu_has_the_same_subjects_of_the_same_sizes_in_its_three_forms() -> None:
    sizes = [
        {leaf.removeprefix(prefix): size for leaf, size in cards()[name].num_docs.items()}
        for name, prefix in (("mmlu", "mmlu_"), ("mmlu_generative", "mmlu_llama_"), ("mmlu_cot", "mmlu_cot_llama_"))
    ]
    assert sizes[0] == sizes[1] == sizes[2]
    assert (len(sizes[0]), sum(sizes[0].values())) == (57, 14042)


@pytest.mark.dear
def test_the_lengths_of_answers_that_cards_declare_are_those_of_their_tasks() -> None:
    known = {name: task for name, task in cards().items() if not task.gen_kwargs}
    facts = describe({name: (task.task, task.overrides, False) for name, task in known.items()}, [str(own_tasks_dir())])
    for name, task in known.items():
        assert set(facts[name]["output_tokens"].values()) == {task.output_tokens}, name


@pytest.mark.dear
@pytest.mark.skipif(not HUB.is_dir(), reason="QUANTSWEEP_DATA names no mirror of data sets")
def test_the_sizes_that_cards_declare_are_those_of_the_data() -> None:
    names = ("arc_challenge_generative", "gsm8k", "gsm8k_cot", "ifeval", "ifeval_prompt", "math_hard", "truthfulqa")
    at_hand = {name: task for name, task in cards().items() if name in names}
    facts = describe({name: (task.task, task.overrides, True) for name, task in at_hand.items()}, mirror=HUB)
    for name, task in at_hand.items():
        assert facts[name]["num_docs"] == task.num_docs, name
        if task.metric is not None:
            assert all(task.metric in metrics for metrics in facts[name]["metrics"].values()), name


@pytest.mark.dear
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


@pytest.mark.dear
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


@pytest.mark.dear
def test_a_point_may_set_what_is_not_there_yet() -> None:
    """As the command line may: an argument of vLLM's, by an axis and by what an axis brings along."""
    cli = ["recipe=w8a8_fp", "++sweep.axes={engine.vllm_args.block_size: [16, 32], seed: [0, 1]}"]
    rule = "sweep.adjust=[{when: {seed: 1}, set: ['engine.vllm_args.max_num_batched_tokens=64']}]"
    trials = expand([*cli, rule], composed(*cli, rule))
    found = [trial.config.engine.vllm_args for trial in trials if not trial.is_base]
    more = {"max_num_batched_tokens": 64}
    assert found == [{"block_size": 16}, {"block_size": 16} | more, {"block_size": 32}, {"block_size": 32} | more]


@pytest.mark.dear
def test_a_trial_is_what_its_point_would_compose_to_alone() -> None:
    axes = ["+sweep.axes.seed=[0,1]", "sweep.axes.model=[llama31_8b]", "sweep.axes.recipe=[w4a16_int]"]
    cli = ["+sweep=llama31", *axes, "++sweep.axes={recipe.group_size: [32,128]}"]
    found = {tuple(trial.point.values()): trial.config for trial in expand(cli, composed(*cli)) if not trial.is_base}
    assert len(found) == 4
    for (model, recipe, seed, group_size), config in found.items():
        point = [f"model={model}", f"recipe={recipe}", f"seed={seed}", f"recipe.group_size={group_size}"]
        assert config == composed(*cli, *point)
