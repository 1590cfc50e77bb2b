"""Fingerprints: what is identity moves them, what is not does not, and they never move by themselves."""

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.steps.fingerprint import canonical, canonical_json, differences, fingerprint, payload
from stages.calibrate import CalibrationConfig
from stages.compare.config import CompareConfig
from stages.evaluate.config import AnswerConfig, EngineConfig, EngineKind, PromptConfig
from stages.fetch import DatasetSource, ModelSource
from stages.fields import identity
from stages.gate.config import GateConfig
from stages.quantize import Algorithm, QuantizeConfig, RecipeConfig

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
W4A16 = RecipeConfig(name="w4a16_int", algorithm=Algorithm.gptq, scheme="W4A16", group_size=128, observer="mse")
SHARD = AnswerConfig(task="gsm8k", start=0, stop=100, harness="lm_eval-0.4.13")
CONFIGS = [
    ModelSource(repo_id="org/model", revision="a" * 40),
    DatasetSource(repo_id="org/data", digest="b" * 64),
    CalibrationConfig(),
    W4A16,
    QuantizeConfig(recipe=W4A16),
    GateConfig(),
    EngineConfig(),
    PromptConfig(),
    SHARD,
    CompareConfig(task="mmlu", leaves=["mmlu_anatomy"]),
]
IDS = [type(config).__name__ for config in CONFIGS]


@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=6), st.randoms())
def test_key_order_does_not_matter(data: dict[str, Any], random: Any) -> None:
    items = list(data.items())
    random.shuffle(items)
    assert fingerprint(dict(items)) == fingerprint(data)


@given(PLAIN, PLAIN)
def test_two_data_share_a_fingerprint_only_if_their_text_is_the_same(one: Any, other: Any) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (canonical_json(one) == canonical_json(other))


def test_list_order_matters() -> None:
    assert fingerprint([1, 2]) != fingerprint([2, 1])


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), float("nan"), float("inf"), {1: "a"}, object(), b"x"])
def test_what_has_no_obvious_encoding_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        fingerprint([value])


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_every_identity_field_moves_the_fingerprint_and_no_other_does(config: Any) -> None:
    before = fingerprint(config)
    for field in dataclasses.fields(config):
        changed = _with(config, field.name, _another(getattr(config, field.name), field))
        moved = fingerprint(changed) != before
        assert moved == field.metadata["identity"], f"{type(config).__name__}.{field.name}"


def test_a_field_without_a_choice_is_refused() -> None:
    @dataclasses.dataclass
    class Careless:
        seed: int = 0

    with pytest.raises(TypeError, match=r"Careless\.seed"):
        fingerprint(Careless())


def test_a_neutral_default_leaves_old_fingerprints_valid() -> None:
    @dataclasses.dataclass
    class Old:
        seed: int = identity(0)

    @dataclasses.dataclass
    class New:
        seed: int = identity(0)
        rotation: str | None = identity(None, neutral=None)

    assert fingerprint(New()) == fingerprint(Old())
    assert fingerprint(New(rotation="hadamard")) != fingerprint(Old())


def test_stage_version_config_and_inputs_all_count() -> None:
    described = payload("quantize", 1, W4A16, {"model": "a" * 64})
    others = [
        payload("gate", 1, W4A16, {"model": "a" * 64}),
        payload("quantize", 2, W4A16, {"model": "a" * 64}),
        payload("quantize", 1, dataclasses.replace(W4A16, group_size=64), {"model": "a" * 64}),
        payload("quantize", 1, W4A16, {"model": "b" * 64}),
        payload("quantize", 1, W4A16, {"base": "a" * 64}),
    ]
    prints = {fingerprint(described), *map(fingerprint, others)}
    assert len(prints) == 6


def test_golden() -> None:
    """If one of these moves, every artifact of its stage in every store is orphaned: bump VERSION knowingly instead."""
    prints = {type(config).__name__: fingerprint(config)[:12] for config in CONFIGS}
    assert prints == GOLDEN


@given(PLAIN, PLAIN)
def test_differences_are_empty_exactly_for_equal_payloads(one: Any, other: Any) -> None:
    old, new = canonical({"config": one}), canonical({"config": other})
    assert bool(differences(old, new)) == (canonical_json(old) != canonical_json(new))


def test_differences_name_the_leaf() -> None:
    old = canonical({"config": {"recipe": {"group_size": 64, "observer": "mse"}}})
    new = canonical({"config": {"recipe": {"group_size": 32, "observer": "mse"}}})
    assert differences(old, new) == [("config.recipe.group_size", 64, 32)]


def test_enums_are_encoded_by_value() -> None:
    class Colour(Enum):
        red = "red"

    assert canonical(Colour.red) == "red"


def _with(config: Any, name: str, value: Any) -> Any:
    changed = dataclasses.replace(config)
    object.__setattr__(changed, name, value)
    return changed


def _another(value: Any, field: dataclasses.Field[Any]) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case None:
            return "something"
        case Algorithm():
            return Algorithm.rtn
        case EngineKind():
            return EngineKind.transformers
        case Enum():
            return next(member for member in type(value) if member is not value)
        case list():
            return [*value, "more"]
        case dict():
            return {**value, "more": 1}
    if dataclasses.is_dataclass(value):
        return next(
            _with(value, inner.name, _another(getattr(value, inner.name), inner))
            for inner in dataclasses.fields(value)
            if inner.metadata["identity"]
        )
    raise AssertionError(f"teach this test to change a {type(value).__name__} ({field.name})")


GOLDEN: dict[str, str] = {
    "ModelSource": "6e046ed055c7",
    "DatasetSource": "9ed944891848",
    "CalibrationConfig": "51b4cc1ffed5",
    "RecipeConfig": "b198ccf3df74",
    "QuantizeConfig": "e53e255e657a",
    "GateConfig": "5e6a501b8c53",
    "EngineConfig": "9aca9e3d7d47",
    "PromptConfig": "948ad5349644",
    "AnswerConfig": "de5ae44d5453",
    "CompareConfig": "7172250fa355",
}
