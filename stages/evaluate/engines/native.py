"""What an open vLLM computes quantized linear layers with."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError

if TYPE_CHECKING:
    from torch.nn import Module


def native_facts(llm: Any) -> dict[str, Any]:
    """The arithmetic of a format that vLLM has kernels for; ``kernels`` is None where it does not show them."""
    names: set[str] = set()
    with suppress(Exception):  # the attributes that hold kernels are vLLM's own, and move with its versions
        names.update(*llm.apply_model(kernel_names))
    return {"method": "native", "kernels": sorted(names) or None}


def check_arithmetic(weights_alone: bool, arithmetic: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise ConfigError where native kernels compute otherwise than the plan says: its numbers would be another's."""
    config = json.loads((checkpoint / "config.json").read_text())
    groups = ((config.get("quantization_config") or {}).get("config_groups") or {}).values()
    if arithmetic.get("method") != "native" or not any(group.get("input_activations") for group in groups):
        return
    rounds = rounds_inputs(arithmetic)
    if rounds is not None and rounds is weights_alone:
        does = f"{'does' if rounds else 'does not'} ({', '.join(arithmetic['kernels'])})"
        raise ConfigError(
            f"{checkpoint.name} rounds its layers' inputs, and this GPU {does}, other than the planned one: say which "
            "GPU the workers have, gpu=NAME (conf/gpu/), so that results of the two are kept apart"
        )


def rounds_inputs(arithmetic: Mapping[str, Any]) -> bool | None:
    """Whether native kernels of a format with rounded inputs round them; None where vLLM does not show its kernels.

    Marlin's multiply by dequantized weights, which is what a GPU without such products gets.
    """
    names: list[str] | None = arithmetic.get("kernels")
    return None if not names else not any(name.startswith("Marlin") for name in names)


def kernel_names(model: "Module") -> list[str]:
    """Class names of the kernels that the model's layers hold."""
    return sorted({name for module in model.modules() for name in _names(module)})


def _names(module: "Module") -> Iterator[str]:
    for owner in (module, getattr(module, "scheme", None), getattr(module, "quant_method", None)):
        for value in vars(owner).values() if hasattr(owner, "__dict__") else ():
            if type(value).__name__.endswith("Kernel"):
                yield type(value).__name__
