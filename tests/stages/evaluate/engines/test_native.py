"""Kernels that compute otherwise than the plan says give no result."""

import json

import pytest

from stages.errors import ConfigError
from stages.evaluate.engines.native import check_arithmetic, rounds_inputs

CUTLASS = {"method": "native", "kernels": ["CutlassFP8ScaledMMLinearKernel"]}
MARLIN = {"method": "native", "kernels": ["MarlinFP8ScaledMMLinearKernel"]}
HIDDEN = {"method": "native", "kernels": None}


@pytest.fixture
def checkpoint(tmp_path):
    def write(**group):
        (tmp_path / "config.json").write_text(
            json.dumps({"quantization_config": {"config_groups": {"group_0": group}}})
        )
        return tmp_path

    return write


@pytest.mark.parametrize(("arithmetic", "rounds"), [(CUTLASS, True), (MARLIN, False), (HIDDEN, None)])
def test_marlin_multiplies_by_weights_alone(checkpoint, arithmetic, rounds):
    assert rounds_inputs(arithmetic) is rounds
    path = checkpoint(input_activations={"num_bits": 8})
    for planned in (True, False):
        if rounds is None or rounds is not planned:
            check_arithmetic(planned, arithmetic, path)
        else:
            with pytest.raises(ConfigError, match=r"rounds its layers' inputs, and this GPU .* gpu=NAME") as refused:
                check_arithmetic(planned, arithmetic, path)
            assert "\n" not in str(refused.value)


def test_where_no_input_is_rounded_or_nothing_is_native_there_is_nothing_to_check(checkpoint):
    check_arithmetic(False, MARLIN, checkpoint(input_activations=None))
    for other in ({"method": "dense"}, {"method": "simulated"}):
        check_arithmetic(True, other, checkpoint(input_activations={"num_bits": 8}))
