"""The BF16 product for CPUs without BF16 units: correctly rounded, and gone afterwards."""

import pytest
import torch
from torch.nn import functional

from stages.checkpoints.bf16 import fast_bf16_linear


@pytest.fixture(params=["AVX2", "AVX512"])
def capability(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return request.param


def test_product_is_the_exact_one_rounded_to_bf16(capability):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(96, 40).bfloat16()
    inputs = torch.randn(7, 96, generator=generator).bfloat16()
    with fast_bf16_linear():
        outputs = layer(inputs)
    exact = functional.linear(inputs.double(), layer.weight.double(), layer.bias.double())
    assert outputs.dtype == torch.bfloat16
    assert (outputs.double() - exact).abs().max() <= exact.abs().max() * 2**-8


def test_other_types_and_later_calls_keep_torchs_own(capability):
    plain = functional.linear
    inputs, weight = torch.randn(3, 8), torch.randn(5, 8)
    with pytest.raises(KeyError), fast_bf16_linear():
        assert torch.equal(functional.linear(inputs, weight), plain(inputs, weight))
        assert (functional.linear is plain) == (capability != "AVX2")
        raise KeyError
    assert functional.linear is plain
