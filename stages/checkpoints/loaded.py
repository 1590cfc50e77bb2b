"""What transformers will load of a model: asked of its own loader, on the meta device, where no weight is read."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.checkpoints.description import ModelDescription, describe
from stages.checkpoints.headers import TensorInfo
from stages.checkpoints.linear_experts import owner_of
from stages.errors import CheckpointError, one_line
from stages.imports import no_collection

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 3
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class Loaded(NamedTuple):
    """Tensors by name: needed and not stored, stored and not taken, of another shape than the model's.

    ``num_bytes`` and ``num_elements``: of what is loaded, each tensor once.
    """

    missing: list[str]
    unread: list[str]
    misshapen: list[str]
    num_bytes: int
    num_elements: int


def check_loads(model_dir: Path, model: ModelDescription) -> Loaded:
    """What is loaded; CheckpointError where the loader would invent some of the weights."""
    loaded = loading(model_dir, model)
    if loaded.missing and len(loaded.unread) == len(model.infos):
        raise CheckpointError(
            f"{model_dir}: none of its tensors has a name that the model knows: they are called {loaded.unread[0]}, "
            f"the model's {loaded.missing[0]}; save the model again under its own names"
        )
    if loaded.missing:
        raise CheckpointError(f"{model_dir}: {shown(loaded.missing)} missing; fetch or save the whole model again")
    if loaded.misshapen:
        raise CheckpointError(
            f"{model_dir}: {shown(loaded.misshapen)} of another shape than config.json says; fetch or save both again"
        )
    return loaded


def shown(names: list[str]) -> str:
    """The first of the names, and how many more, with the verb that they take."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"


def loading(model_dir: Path, model: ModelDescription) -> Loaded:
    """What the loader says; CheckpointError where it cannot build the model."""
    return built_on_meta(model_dir, model.infos)[1]


def built_on_meta(model_dir: Path, infos: Mapping[str, TensorInfo]) -> tuple[Any, Loaded]:
    """The model that the loader makes of tensors like ``infos``, unquantized, and what it says of them.

    Raises CheckpointError where it cannot build the model.
    """
    with no_collection():
        import torch
        import transformers

    unread: set[str] = set()
    try:
        config = transformers.AutoConfig.from_pretrained(model_dir)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        tensors = {name: _on_meta(info) for name, info in infos.items()}
        with quiet(), _kept(unread), torch.device("meta"):
            model, said = owner_of(config).from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype="auto",
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{model_dir}: transformers cannot build the model: {one_line(error)}") from error
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    own = [tensor for name, tensor in model.state_dict().items() if name not in tied]
    found = Loaded(
        sorted(said["missing_keys"]),
        sorted(unread),
        _names(said["mismatched_keys"]),
        sum(tensor.numel() * tensor.element_size() for tensor in own),
        sum(tensor.numel() for tensor in own),
    )
    return model, found


def stored_dtype(dtype: Any) -> str:
    """A dtype of torch in safetensors' words."""
    name = str(dtype).removeprefix("torch.")
    return next(word for word, each in _DTYPES.items() if each == name)


def _on_meta(info: TensorInfo) -> "Tensor":
    import torch

    return torch.empty(info.shape, dtype=getattr(torch, _DTYPES[info.dtype]), device="meta")


@contextmanager
def _kept(unread: set[str]) -> Iterator[None]:
    """Keep the names of tensors that are not taken, also of those about which the loader says nothing."""
    from transformers import PreTrainedModel

    plain = PreTrainedModel._adjust_missing_and_unexpected_keys

    def adjust(self: Any, info: Any) -> None:
        unread.update(info.unexpected_keys)
        plain(self, info)

    PreTrainedModel._adjust_missing_and_unexpected_keys = adjust
    try:
        yield
    finally:
        PreTrainedModel._adjust_missing_and_unexpected_keys = plain


@contextmanager
def quiet() -> Iterator[None]:
    """Its table of what is missing is said here in one line."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _names(mismatched: Iterable[Any]) -> list[str]:
    return sorted(entry if isinstance(entry, str) else entry[0] for entry in mismatched)


if __name__ == "__main__":  # asked by a plan, which stays free of torch
    _dir = Path(sys.argv[1])
    try:
        check_loads(_dir, describe(_dir))
    except CheckpointError as found:
        print(found)
