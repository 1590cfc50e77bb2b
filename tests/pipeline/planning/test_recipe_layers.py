"""Layers that a recipe names are looked for where the model's files lie, before anything runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.schema import Config, ModelConfig
from pipeline.errors import UserError
from pipeline.planning.recipe_layers import check_recipe_layers
from stages.fetch import ModelSource
from tests.pipeline.planning.test_plan import trials_of

pytestmark = pytest.mark.dear  # composing the first sweep takes three seconds


def _config(model_dir: Path, layers: list[str], ignore: list[str]) -> Config:
    header = {
        f"{layer}.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8 * index, 8 * index + 8]}
        for index, layer in enumerate(layers)
    }
    text = json.dumps(header).encode()
    model_dir.joinpath("model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8 * len(layers)))
    (config,) = (trial.config for trial in trials_of("+sweep=smoke") if trial.config.recipe.name == "w8a8_fp")
    model = ModelConfig(name="mine", source=ModelSource(path=str(model_dir)))
    return replace(config, model=model, recipe=replace(config.recipe, ignore=ignore))


def test_a_name_that_no_layer_of_a_local_model_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    config = _config(tmp_path, ["model.layers.0.mlp.down_proj"], ["lm_head", "model.layers.0.mlp.dwon_proj"])
    with pytest.raises(
        UserError, match=r"model mine: recipe w8a8_fp: ignore: .*dwon_proj' matches no layer.*down_proj'"
    ):
        check_recipe_layers([config])


def test_a_recipe_that_ignores_every_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ignore leaves none of the layers that targets names"):
        check_recipe_layers([_config(tmp_path, ["model.layers.0.mlp.down_proj"], ["re:.*"])])


@pytest.mark.parametrize(
    ("layers", "ignore"),
    [
        (["model.layers.0.mlp.down_proj"], ["lm_head"]),
        (["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"], ["re:.*layers.1.*"]),
        (["model.layers.0.block_sparse_moe.experts.0.w1"], ["re:.*experts.*down_proj"]),  # called so when loaded
    ],
)
def test_names_that_are_there_or_come_with_loading_pass(tmp_path: Path, layers: list[str], ignore: list[str]) -> None:
    check_recipe_layers([_config(tmp_path, layers, ignore)])
