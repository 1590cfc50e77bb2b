"""Every field of every stage config says whether it is identity."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import stages
from pipeline.config.schema import TaskConfig


def _stage_configs() -> Iterator[type[Any]]:
    for module_info in pkgutil.walk_packages(stages.__path__, "stages."):
        module = importlib.import_module(module_info.name)
        for _, value in inspect.getmembers(module, inspect.isclass):
            is_config = value.__name__.endswith(("Config", "Source", "Row", "Shape"))
            if value.__module__ == module.__name__ and dataclasses.is_dataclass(value) and is_config:
                yield value


@pytest.mark.parametrize("config", [*_stage_configs(), TaskConfig], ids=lambda config: config.__name__)
def test_every_field_is_classified(config: type[Any]) -> None:
    unclassified = [field.name for field in dataclasses.fields(config) if "identity" not in field.metadata]
    assert not unclassified, f"{config.__name__}: make these with identity() or execution(): {unclassified}"


def test_the_stage_configs_are_found() -> None:
    names = {config.__name__ for config in _stage_configs()}
    assert {"RecipeConfig", "CalibrationConfig", "AnswerConfig", "CompareConfig", "GateConfig"} <= names


@pytest.mark.parametrize("config", [*_stage_configs(), TaskConfig], ids=lambda config: config.__name__)
def test_a_misspelt_attribute_cannot_be_set(config: type[Any]) -> None:
    """Slots are what turns ``++recipe.grup_size=1`` into an error."""
    assert "__slots__" in vars(config)
