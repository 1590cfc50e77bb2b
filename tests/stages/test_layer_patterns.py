"""Layers by name: what means none of them is told, with what may have been meant."""

import pytest

from stages.layer_patterns import check_matches
from stages.quantize import Algorithm, RecipeConfig

LAYERS = [
    f"model.layers.{index}.{name}"
    for index in range(2)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
]


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("down_proj", "names are matched whole, write 're:.*down_proj'"),
        ("mlp", "names are matched whole, write 're:.*mlp'"),
        ("layers.1.mlp", "names are matched whole, write 're:.*layers.1.mlp'"),
        (".*down_proj", "a regular expression is marked as one, write 're:.*down_proj'"),
        ("re:down_proj", "names are matched whole, write 're:.*down_proj'"),
        ("re:mlp.(gate|up)_proj", "a name is matched from its beginning, write 're:.*mlp.(gate|up)_proj'"),
        ("model.layers.0.mlp.dwon_proj", "the nearest name is 'model.layers.0.mlp.down_proj'"),
        ("model.layers.1.self_atn.q_proj", "the nearest name is 'model.layers.1.self_attn.q_proj'"),
        (r"re:.*mlp\.gate_porj$", "the nearest name is 'model.layers.0.mlp.gate_proj'"),
        ("gate_porj", "the nearest name is 'model.layers.0.mlp.gate_proj'"),
        ("Linaer", "its layers are called 'model.layers.0.self_attn.q_proj', "),
        ("re:.*vision_tower.*", "its layers are called "),
    ],
)
def test_what_matches_no_layer_is_told_with_what_may_have_been_meant(pattern, advice):
    with pytest.raises(ValueError, match="matches no layer") as refusal:
        check_matches("ignore", ["lm_head", pattern], LAYERS)
    message = str(refusal.value)
    assert message.startswith(f"ignore: {pattern!r} matches no layer; {advice}") and "\n" not in message


@pytest.mark.parametrize(
    "pattern", ["lm_head", "Linear", "model.layers.1.mlp.down_proj", "re:.*down_proj", r"re:model\.layers\.0"]
)
def test_what_matches_a_layer_passes(pattern):
    check_matches("ignore", [pattern], LAYERS)


@pytest.mark.parametrize("field", ["ignore", "targets"])
@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("re:*lm_head", r"nothing to repeat, character 1 of '\*lm_head'"),
        ("re:.*(mlp", r"missing \), unterminated subpattern, character 3 of"),
        ("re:.*[a", "unterminated character set, character 3 of"),
        ("re:", "says nothing of a layer's name"),
    ],
)
def test_a_pattern_that_is_no_regular_expression_is_refused_when_the_recipe_is_read(field, pattern, why):
    with pytest.raises(ValueError, match=f"recipe odd: {field}: {pattern!r:.4}.*{why}"):
        RecipeConfig(name="odd", algorithm=Algorithm.rtn, scheme="W8A8", **{field: ["lm_head", pattern]})
