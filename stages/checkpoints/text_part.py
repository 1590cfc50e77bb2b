"""The language model in a model that may also see or hear, as the quantizer meets it."""

from typing import Any


def outside_text(model: Any) -> list[str]:
    """Names of the linear layers of towers and projectors: they stay as they are."""
    import torch

    text = {id(module) for module in model.get_decoder().modules()}
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module) not in text and module is not head
    ]


def routers(model: Any) -> list[str]:
    """Names of the linear layers that say which experts answer, and how much a shared one counts.

    They stay as they are: they are small, a wrong choice costs a whole expert, and engines read them in 16 bits alone.
    """
    import torch

    blocks = [(name, module) for name, module in model.named_modules() if hasattr(module, "experts")]
    return [
        f"{block}.{name}"
        for block, module in blocks
        for name, child in module.named_children()
        if isinstance(child, torch.nn.Linear)
    ]


def make_plain(model: Any) -> None:
    """Linear layers of the language model under a class of their own become plain ones, where they compute the same.

    compressed-tensors calibrates them by their base class and packs them by their own: of others it stores the weights
    unpacked.
    """
    import torch

    for module in model.get_decoder().modules():
        if isinstance(module, torch.nn.Linear) and type(module) is not torch.nn.Linear and _computes_plainly(module):
            module.__class__ = torch.nn.Linear


def _computes_plainly(module: Any) -> bool:
    import torch

    weight = module.weight
    inputs = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.inference_mode():
        own, plain = module(inputs), torch.nn.Linear.forward(module, inputs)
    return own.shape == plain.shape and bool(torch.allclose(own.float(), plain.float(), rtol=1e-2, atol=1e-3))
