"""A display name identifies nothing: where one name would stand for two things, the sweep is refused."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pytest

from pipeline.config.command_line import Command
from pipeline.config.composition import composition
from pipeline.config.schema import DataConfig
from pipeline.config.sweep import Trial, expand, shared_config
from pipeline.errors import UserError
from pipeline.planning.data_sources import Sources

QUANTIZED = "defaults: [recipe_schema, _self_]\nname: {name}\nalgorithm: rtn\nscheme: W4A16\ngroup_size: {size}\n"
HUB = "defaults: [model_schema, _self_]\nname: {name}\nsource: {{repo_id: org/{repo}, revision: '{digit:040d}'}}\n"
FILES = {
    "recipe/a.yaml": QUANTIZED.format(name="same", size=64),
    "recipe/b.yaml": QUANTIZED.format(name="same", size=32),
    "recipe/c.yaml": QUANTIZED.format(name="other", size=32),
    "recipe/base.yaml": QUANTIZED.format(name="bf16", size=64),
    "model/a.yaml": HUB.format(name="same", repo="one", digit=1),
    "model/b.yaml": HUB.format(name="same", repo="two", digit=1),
    "model/c.yaml": HUB.format(name="other", repo="two", digit=1),
    "gpu/a.yaml": "defaults: [gpu_schema, _self_]\nname: same\nproduct: L40\n",
    "gpu/b.yaml": "defaults: [gpu_schema, _self_]\nname: same\nproduct: L41\n",
}


@contextmanager
def own(directory: Path, axes: str) -> Iterator[list[Trial]]:
    for name, text in {
        **FILES,
        "sweep/mine.yaml": f"# @package _global_\nsweep: {{name: mine, axes: {axes}}}\n",
    }.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    command = Command(["+sweep=mine", "suite=none", "serving=smoke"], directory)
    with composition(command) as composed:
        yield expand(command.overrides, shared_config(composed, command.overrides))


@pytest.mark.dear
@pytest.mark.parametrize(
    ("axes", "kind", "points"),
    [
        ("{recipe: [bf16, a, b]}", "trial 'smollm2_135m/same'", "{'recipe': 'a'} and {'recipe': 'b'}"),
        ("{recipe: [base]}", "trial 'smollm2_135m/bf16'", "{'recipe': 'bf16'} and {'recipe': 'base'}"),
        ("{model: [a, b]}", "model 'same'", "{'model': 'a'} and {'model': 'b'}"),
        ("{model: [a, b], recipe: [bf16, c]}", "model 'same'", "'model': 'a'"),
        (
            "{model: [a], model.source.repo_id: [org/x, org/y]}",
            "model 'same'",
            "'model.source.repo_id': 'org/x'} and {'model': 'a', 'model.source.repo_id': 'org/y'",
        ),
        ("{gpu: [a, b], engine.max_model_len: [512, 1024]}", "gpu 'same'", "'gpu': 'a'"),
    ],
)
def test_two_things_of_one_name_are_refused_with_both_points(tmp_path: Path, axes: str, kind: str, points: str) -> None:
    with pytest.raises(UserError) as refused, own(tmp_path, axes):
        pass
    assert f"{kind} is not the same at the points" in str(refused.value)
    assert points in str(refused.value)


@pytest.mark.dear
@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ("{recipe: [bf16, a, c]}", ["smollm2_135m/bf16", "smollm2_135m/same", "smollm2_135m/other"]),
        ("{model: [a, c]}", ["same/bf16", "other/bf16"]),
        (
            "{recipe: [a], recipe.group_size: [32, 64]}",
            ["smollm2_135m/bf16", "smollm2_135m/same/group_size=32", "smollm2_135m/same/group_size=64"],
        ),
    ],
)
def test_other_names_are_other_things(tmp_path: Path, axes: str, names: list[str]) -> None:
    with own(tmp_path, axes) as trials:
        assert [trial.name for trial in trials] == names


@pytest.mark.dear
@pytest.mark.parametrize("name", ["nan", "405", "1.5", "true", "null", "off", "a,b"])
def test_a_file_may_be_called_what_yaml_or_hydra_take_for_another_thing(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "own"
    (directory / "recipe").mkdir(parents=True)
    (directory / "sweep").mkdir()
    text = "defaults: [recipe_schema, _self_]\nname: odd\nalgorithm: rtn\nscheme: W8A8\n"
    (directory / "recipe" / f"{name}.yaml").write_text(text)
    bare = name in ("405", "1.5")  # read as numbers, which are named by their digits
    axes = f"{{recipe: [{name if bare else json.dumps(name)}]}}"
    (directory / "sweep" / "mine.yaml").write_text(f"# @package _global_\nsweep: {{name: mine, axes: {axes}}}\n")
    command = Command(["+sweep=mine", "suite=none", "serving=smoke"], directory)
    with composition(command) as composed:
        trials = expand(command.overrides, shared_config(composed, command.overrides))
    assert [trial.name for trial in trials if not trial.is_base] == ["smollm2_135m/odd"]


@pytest.mark.dear
def test_a_file_that_hides_behind_one_of_the_project_s_is_refused(tmp_path: Path) -> None:
    with own(tmp_path, "{recipe: [c]}"):
        pass
    copied = tmp_path / "recipe" / "w8a8_fp.yaml"
    copied.write_bytes(resources.files("conf").joinpath("recipe", "w8a8_fp.yaml").read_bytes())
    with own(tmp_path, "{recipe: [c]}"):
        pass
    copied.write_text(QUANTIZED.format(name="w8a8_fp", size=32))
    with (
        pytest.raises(UserError, match=r"^recipe/w8a8_fp\.yaml in .* would not be read.*rename it$"),
        own(tmp_path, "{recipe: [c]}"),
    ):
        pass


def test_a_data_set_at_two_revisions_is_refused() -> None:
    sources = Sources(DataConfig())
    sources.get("org/data", None)
    sources.get("org/other", "1" * 40)
    sources.get("org/other", None)
    with pytest.raises(UserError, match=r"org/other is named at two revisions, 1{40} and 2{40}"):
        sources.get("org/other", "2" * 40)
