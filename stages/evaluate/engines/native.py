"""What an open vLLM computes quantized linear layers with, and whether that is what the plan counted on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.checkpoints.formats import Format
from stages.checkpoints.kernels import UNKNOWN, Device, answer_all, computed_as, is_emulation, linear_kernels
from stages.checkpoints.quantized import read_formats
from stages.errors import ConfigError
from stages.gpu import compute_capability

if TYPE_CHECKING:
    from torch.nn import Module

    from stages.evaluate.config import EngineConfig

NATIVE = "native"


def native_facts(llm: Any, checkpoint: Path) -> dict[str, Any]:
    """The arithmetic of a format that vLLM has kernels for; ``kernels`` is None where it does not show them.

    ``effective`` is there where they compute another format (W4A16) than ``format`` (W4A4); None: it is not known.
    """
    names: set[str] = set()
    with suppress(Exception):  # the attributes that hold kernels are vLLM's own, and move with its versions
        names.update(*llm.apply_model(kernel_names))
    return native(read_formats(checkpoint), sorted(names))


def native(formats: Sequence[Format], names: Sequence[str]) -> dict[str, Any]:
    """The arithmetic of kernels called so."""
    facts: dict[str, Any] = {"method": NATIVE, "kernels": list(names) or None}
    if not names or not formats:
        return facts
    as_said = computed_as(formats)
    as_run = computed_as(formats, names) if linear_kernels(names) else None  # quantized experts alone
    return facts if as_said == as_run else {**facts, "format": as_said, "effective": as_run}


def check_arithmetic(
    effective: str | None, engine: "EngineConfig", facts: Mapping[str, Any], arithmetic: Mapping[str, Any], place: Path
) -> None:
    """Raise ConfigError where kernels compute otherwise than the plan, or the table of kernels, says: nothing of it may
    be published.  ``effective`` is what the plan says, ``facts`` are the engine's.
    """
    names = arithmetic.get("kernels")
    if arithmetic.get("method") == NATIVE and names is not None:
        _check_plan(effective, read_formats(place), arithmetic, place)
        check_kernels(engine, device_here(facts["platform"], facts["engine_version"]), names, place)


def check_kernels(engine: "EngineConfig", device: Device, names: Sequence[str], place: Path) -> None:
    """Raise ConfigError where the kernels that a checkpoint at ``place`` got are not those of the table, or emulate."""
    if (emulating := is_emulation(names)) is not None and not engine.allow_emulation:
        raise ConfigError(
            f"{place.name}: vLLM emulates its format ({emulating}) without being asked; if that is meant, set "
            "engine.allow_emulation=true"
        )
    found = answer_all(read_formats(place), device, engine.dtype, engine.linear_backend)
    others = [name for name in linear_kernels(names) if found is not None and name not in found.kernels]
    if found is None or found.unknown is not None or not others:
        return
    raise ConfigError(
        f"{place.name}: vLLM {device.version} computes its {found.label} with {', '.join(others)} here, and the table "
        f"of kernels says {' or '.join(found.kernels) or 'that it does not run'}: nothing of it is published until "
        "kernels.yaml (stages/checkpoints/) says what that computes"
    )


def _check_plan(effective: str | None, formats: Sequence[Format], arithmetic: Mapping[str, Any], place: Path) -> None:
    if effective is not None and effective.startswith(UNKNOWN):
        return
    as_said = computed_as(formats) if formats else None
    seen = arithmetic.get("effective", as_said)
    if seen is None or seen == (effective or as_said):
        return
    raise ConfigError(
        f"{place.name} is {as_said}, and what is here computes it as {seen} ({', '.join(arithmetic['kernels'])}), not "
        f"as {effective or as_said}, as planned: say which GPU the workers have, gpu=NAME (conf/gpu/), so that results "
        "of the two are kept apart"
    )


def device_here(platform: str, version: str) -> Device:
    """What multiplies in this process: ``platform`` is cpu or cuda, ``version`` vLLM's."""
    is_cpu = platform == "cpu"
    return Device(is_cpu, None if is_cpu else compute_capability(), version)


def kernel_names(model: "Module") -> list[str]:
    """Class names of the kernels that the model's layers hold."""
    return sorted({name for module in model.modules() for name in _names(module)})


def _names(module: "Module") -> Iterator[str]:
    for owner in (module, getattr(module, "scheme", None), getattr(module, "quant_method", None)):
        for value in vars(owner).values() if hasattr(owner, "__dict__") else ():
            if type(value).__name__.endswith("Kernel"):
                yield type(value).__name__
