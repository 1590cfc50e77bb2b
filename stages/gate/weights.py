"""What a quantized checkpoint's files must be: held against what is foretold, and against what the base loads."""

from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from stages.checkpoints.expected import Expected, Stored, foretell
from stages.checkpoints.headers import TensorInfo, read_tensor_infos
from stages.checkpoints.intent import Intent, read_intent
from stages.checkpoints.meta import LoadedModel, loaded_model, loaded_names
from stages.checkpoints.rows import Reader, blocks
from stages.gate.artifact import Check
from stages.gate.closeness import num_wrong_rows

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 3  # names listed in a detail; a broken checkpoint may have thousands
_MAGNITUDES = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}  # the least bits, without the sign, that are no finite number
_CAST = {"F32", "F16", "BF16"}  # versions differ in which of them scales are stored in, and loaders do not
_FLOATING = ("F64", "F32", "F16", "BF16", *_MAGNITUDES)


class Files:
    """A checkpoint's tensors, by the names that the loader gives, and what they must be."""

    def __init__(self, expected: Expected, checkpoint: Mapping[str, TensorInfo], intent: Intent) -> None:
        self.expected, self.intent = expected, intent
        base = expected.base
        names = loaded_names(base.model, checkpoint, dict.fromkeys(expected.tensors, True))
        # A head that is stored beside the table that it is tied to is not read.
        tied_first = sorted(names.items(), key=lambda pair: pair[1] not in base.tied)
        self.stored = {base.tied.get(name, name): (stored, checkpoint[stored]) for stored, name in tied_first}
        self.num_bytes = sum(info.num_bytes for _, info in self.stored.values())

    @cached_property
    def unlike(self) -> dict[str, str]:
        """What is not stored as it must be, by loaded name, with what is wrong."""
        wanted = self.expected.tensors
        found = {name: self._difference(name, stored) for name, stored in wanted.items()}
        found |= {
            name: "is not expected" for name in self.stored.keys() - wanted.keys() if not self._is_left_over(name)
        }
        return {name: wrong for name, wrong in sorted(found.items()) if wrong}

    def _is_left_over(self, name: str) -> bool:
        """Whether no loader reads it: what none reads in the base either, and zero points that old versions stored."""
        layer, _, local = name.rpartition(".")
        if local.endswith("_zero_point") and layer in self.expected.layers and not self.intent.is_own:
            return True
        return self.stored[name][0].rpartition(".")[0] in self.expected.base.unread_modules

    def _difference(self, name: str, wanted: Stored) -> str:
        if name not in self.stored:
            return "is missing"
        info = self.stored[name][1]
        source = self.expected.base.sources.get(name) if name in self.expected.others else None
        is_cast = _is_scale(name) and not self.intent.is_own and {info.dtype, wanted.dtype} <= _CAST
        if info.dtype != wanted.dtype and (source is None or info.dtype != source.dtype) and not is_cast:
            return f"is {info.dtype}, not {wanted.dtype}"
        return "" if info.shape == wanted.shape else f"has shape {info.shape}, not {wanted.shape}"

    @cached_property
    def wrong_layers(self) -> list[str]:
        """Quantized layers that lack tensors, have others, or have them in another shape."""
        owners = dict.fromkeys(name.rpartition(".")[0] for name in self.unlike)
        return [name for name in owners if name in self.expected.layers]

    @property
    def size_ratio(self) -> float:
        """Bytes of the checkpoint / bytes of what the base loads."""
        return self.num_bytes / self.expected.base.num_bytes


def read_files(base_dir: Path, checkpoint_dir: Path, intent: Intent | None = None) -> Files:
    """Read every header, and foretell the checkpoint from the base and from its own ``intent`` unless that is given.

    Raises CheckpointError for files that are damaged or missing.
    """
    intent = intent or read_intent(checkpoint_dir)
    checkpoint = read_tensor_infos(checkpoint_dir)
    return Files(foretell(loaded_model(base_dir), intent), checkpoint, intent)


def check_weights(files: Files, max_size_deviation: float) -> Iterator[Check]:
    """Every check that needs no forward pass."""
    yield _check_targeted(files)
    with ExitStack() as opened:
        checkpoint = opened.enter_context(Reader(files.stored))
        base = _Base(files.expected.base, opened.enter_context(Reader(_stored_base(files.expected.base))))
        yield _check_others(files, checkpoint, base)
        bad = [name for name in files.stored if _is_scale(name) and not _are_scales(checkpoint.read(name))]
        yield _check_scales(bad, base)
        yield _check_finite(files, checkpoint, base)
        yield _check_close(files, checkpoint, base, {*files.wrong_layers, *(name.rpartition(".")[0] for name in bad)})
    yield _check_size(files, max_size_deviation)


def _stored_base(base: LoadedModel) -> dict[str, tuple[str, TensorInfo]]:
    """What is stored as it is loaded."""
    return {name: (stored, base.infos[stored]) for stored, name in base.names.items() if name in base.sources}


class _Base:
    """What the base loads, by loaded name: from its files, and experts that are stored as one from their parts."""

    def __init__(self, model: LoadedModel, reader: Reader) -> None:
        self._model, self._reader = model, reader
        self._owner = ""
        self._experts: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._reader or self._owner_of(name) is not None

    def read(self, name: str, rows: slice | None = None) -> "Tensor":
        """A tensor, or some of its rows, in the dtype that it has in the file."""
        if name in self._reader:
            return self._reader.read(name, rows)
        owner = str(self._owner_of(name))
        if owner != self._owner:
            self._owner, self._experts = owner, self._model.split_experts(owner)
        return self._experts[name] if rows is None else self._experts[name][rows]

    def _owner_of(self, name: str) -> str | None:
        before, found, _ = name.rpartition(".experts.")
        return f"{before}.experts" if found and name in self._model.tensors else None


def _check_targeted(files: Files) -> Check:
    layers = files.expected.layers
    wrong = [f"{name} {why}" for name, why in files.unlike.items() if name.rpartition(".")[0] in layers]
    num_right = len(layers) - len(files.wrong_layers)
    detail = _list(wrong) or ("" if layers else "no layer is to be quantized")
    return Check("targeted_layers_quantized", num_right > 0 and not wrong, num_right, len(layers), detail)


def _check_size(files: Files, max_deviation: float) -> Check:
    ratio, expected = files.size_ratio, files.expected.num_bytes / files.expected.base.num_bytes
    passed = abs(ratio / expected - 1) <= max_deviation
    return Check("size_ratio", passed, ratio, expected, f"at most {max_deviation:.0%} apart")


def _check_others(files: Files, checkpoint: Reader, base: _Base) -> Check:
    """Every other tensor is what the base loads, byte for byte; norms and biases may make up for rescaled channels."""
    layers = files.expected.layers
    wrong = {name: why for name, why in files.unlike.items() if name.rpartition(".")[0] not in layers}
    wrong = {
        name: why
        for name, why in wrong.items()
        if why != "is missing" or name not in files.expected.others or name in base
    }
    for name, stored in files.expected.others.items():
        may_change = files.expected.others_are_rotated or (files.intent.may_rescale and len(stored.shape) == 1)
        is_there = name in files.stored and name in base and name not in wrong
        if is_there and not may_change and not _is_equal(checkpoint, base, name, stored):
            wrong[name] = "is not the base's"
    return Check(
        "other_tensors_untouched", not wrong, len(wrong), 0, _list([f"{name} {why}" for name, why in wrong.items()])
    )


def _is_equal(checkpoint: Reader, base: _Base, name: str, stored: Stored) -> bool:
    """Byte for byte, after the cast that the loader makes."""
    import torch

    for rows in blocks(stored.shape, stored.num_bytes / max(1, (*stored.shape, 1)[0])):
        own = checkpoint.read(name, rows)
        other = base.read(name, rows).to(own.dtype)
        if not torch.equal(_bytes(own), _bytes(other)):
            return False
    return True


def _bytes(tensor: "Tensor") -> "Tensor":
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _check_scales(bad: list[str], base: _Base) -> Check:
    """Scales are finite and positive; what is no number in the base is told as the base's fault."""
    return Check("scales_finite_positive", not bad, len(bad), 0, _told(bad, "holds a bad scale", base))


def _check_finite(files: Files, checkpoint: Reader, base: _Base) -> Check:
    """Whatever is no scale is finite."""
    others = sorted(name for name in files.stored if not _is_scale(name))
    bad = [name for name in others if not _is_finite(checkpoint, name, files.stored[name][1])]
    return Check("weights_finite", not bad, len(bad), 0, _told(bad, "holds NaN or infinity", base))


def _told(names: list[str], what: str, base: _Base) -> str:
    detail = _list([f"{name} {what}" for name in names])
    for name in names[:_SHOWN]:
        source = name if name in base else f"{name.rpartition('.')[0]}.weight"
        if source in base and not bool(base.read(source).isfinite().all()):
            return f"{detail}, and so does {source} of the base: take another base"
    return detail


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2].endswith("_scale")


def _are_scales(scales: "Tensor") -> bool:
    import torch

    if scales.dtype is torch.uint8:  # E8M0: exponents of two, of which 255 means NaN
        return bool((scales < 255).all())
    scales = scales.float()  # torch compares no FP8
    return bool(torch.isfinite(scales).all() and (scales > 0).all())


def _is_finite(checkpoint: Reader, name: str, info: TensorInfo) -> bool:
    import torch

    if info.dtype not in _FLOATING:
        return True
    for rows in blocks(info.shape, info.num_bytes / max(1, (*info.shape, 1)[0])):
        values = checkpoint.read(name, rows)
        bits = _MAGNITUDES.get(info.dtype)
        is_finite = values.isfinite() if bits is None else (values.view(torch.uint8) & 0x7F) < bits
        if not bool(is_finite.all()):
            return False
    return True


def _check_close(files: Files, checkpoint: Reader, base: _Base, unreadable: Container[str]) -> Check:
    """Dequantized weights are the base's to within what the format allows, but of layers that are known to be wrong."""
    if not files.intent.is_comparable:
        return Check("weights_close", True, None, None, "rotated weights are not comparable with the base's")
    wrong = []
    for name, layer in files.expected.layers.items():
        weight = f"{name}.weight"
        if name in unreadable or weight not in base:
            continue
        shape = tuple(files.expected.base.tensors[weight].shape)
        read, of_base = partial(_local, checkpoint, name), partial(base.read, weight)
        if num := num_wrong_rows(layer, shape, files.intent, read, of_base):
            wrong.append(f"{name} is not the base's layer rounded ({num:,} of {shape[0]:,} rows)")
    return Check("weights_close", not wrong, len(wrong), 0, _list(wrong))


def _local(checkpoint: Reader, layer: str, name: str, rows: slice | None) -> "Tensor":
    return checkpoint.read(f"{layer}.{name}", rows)


def _list(found: list[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(found[:_SHOWN])}{more}"
