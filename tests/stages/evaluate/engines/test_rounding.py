"""Inputs rounded as FP8 and INT8 formats say, against torch's own float8 and the definition in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import ConfigError
from stages.evaluate.engines.rounding import InputFormat, round_e4m3_, round_input

TOKEN = {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}


def all_bfloat16_up_to_448():
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    return values[values.abs() <= 448]


def all_e4m3():
    values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).float()
    return values[values.isfinite()].unique()


def test_adding_and_subtracting_rounds_as_the_cast_to_float8_does():
    """Every bfloat16, every tie between two float8 values, and the float32 neighbours of each tie."""
    grid = all_e4m3()
    ties = (grid[1:] + grid[:-1]) / 2
    beside = [torch.nextafter(ties, torch.full_like(ties, end)) for end in (-torch.inf, torch.inf)]
    values = torch.cat([all_bfloat16_up_to_448(), grid, ties, *beside])
    assert len(values) > 34_000
    assert torch.equal(round_e4m3_(values.clone()), values.to(torch.float8_e4m3fn).float())


@given(st.floats(-448, 448, width=32))
def test_any_float32_is_rounded_as_the_cast_does(value):
    values = torch.tensor([value])
    assert torch.equal(round_e4m3_(values.clone()), values.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("kind", ["e4m3", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_has_its_own_scale_in_float32_and_keeps_its_largest_value(kind, dtype):
    largest = {"e4m3": 448, "int8": 127}[kind]
    values = (torch.randn(64, 96) * torch.logspace(-6, 6, 64)[:, None]).to(dtype)
    found = round_input(values, kind)
    assert found.dtype == dtype
    scales = values.float().abs().amax(-1, keepdim=True) / largest
    codes = values.float() / scales
    codes = codes.to(torch.float8_e4m3fn).float() if kind == "e4m3" else codes.round()
    assert torch.equal(found, (codes * scales).to(dtype))
    top = values.abs().argmax(-1, keepdim=True)
    assert torch.allclose(found.gather(-1, top).float(), values.gather(-1, top).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["e4m3", "int8"])
def test_a_row_of_zeros_stays_and_a_row_does_not_depend_on_its_neighbours(kind):
    values = torch.randn(8, 32)
    values[3] = 0
    found = round_input(values, kind)
    assert torch.equal(found[3], torch.zeros(32))
    assert torch.equal(round_input(values[5:6], kind), found[5:6])


def test_a_static_scale_cuts_off_what_is_beyond_its_largest_code():
    values = torch.tensor([[300.0, -900.0, 0.26, 0.24]])
    assert round_input(values, "int8", torch.tensor(0.5)).tolist() == [[63.5, -63.5, 0.5, 0.0]]
    assert round_input(values, "e4m3", torch.tensor(1.0))[0, :2].tolist() == [288.0, -448.0]  # 300: between 288 and 320


@pytest.mark.parametrize(
    "change",
    [{"num_bits": 4}, {"symmetric": False}, {"strategy": "tensor"}, {"strategy": "group"}, {"dynamic": "local"}],
)
def test_a_format_that_is_not_known_is_refused_in_one_line(change):
    assert InputFormat.from_args(TOKEN) == InputFormat("e4m3", "token")
    with pytest.raises(ConfigError, match="cannot be simulated on a CPU") as caught:
        InputFormat.from_args(TOKEN | change)
    assert "\n" not in str(caught.value)
    assert "use engine=" in str(caught.value)
