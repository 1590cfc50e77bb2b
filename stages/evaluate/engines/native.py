"""What an open vLLM computes quantized linear layers with."""

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module


def native_facts(llm: Any) -> dict[str, Any]:
    """The arithmetic of a format that vLLM has kernels for; ``kernels`` is None where it does not show them."""
    names: set[str] = set()
    with suppress(Exception):  # the attributes that hold kernels are vLLM's own, and move with its versions
        names.update(*llm.apply_model(kernel_names))
    return {"method": "native", "kernels": sorted(names) or None}


def kernel_names(model: "Module") -> list[str]:
    """Class names of the kernels that the model's layers hold."""
    return sorted({name for module in model.modules() for name in _names(module)})


def _names(module: "Module") -> Iterator[str]:
    for owner in (module, getattr(module, "scheme", None), getattr(module, "quant_method", None)):
        for value in vars(owner).values() if hasattr(owner, "__dict__") else ():
            if type(value).__name__.endswith("Kernel"):
                yield type(value).__name__
