"""What tensor parallelism splits: whether groups and blocks of a format survive it, and rotations at run time."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stages.checkpoints.formats import Format
from stages.checkpoints.sizes import Heads, LayerSize, ModelSizes, alike

# How vLLM divides layers, by the end of their names: inputs, or outputs of all that it puts into one product.
_BY_INPUTS = ("o_proj", "out_proj", "wo", "dense", "down_proj", "w2", "fc2", "c_proj", "dense_4h_to_h")
_QUERIES, _KEYS = ("q_proj",), ("k_proj", "v_proj")
_BY_OUTPUTS = ("gate_proj", "up_proj", "w1", "w3", "fc1", "c_fc", "dense_h_to_4h")
_FUSED = ("qkv_proj", "query_key_value", "Wqkv", "gate_up_proj")
_LAST_OF_PRODUCT = ("v_proj", "up_proj", "w3")  # whose outputs may end within a block
_GROUPS = (128, 64, 32, 16)
_FUSED_LOCATIONS = ("weight_input", "weight_output")


class Misfit(NamedTuple):
    """A layer (``name`` inside its block) that the ranks would split within a group or block."""

    name: str
    what: str  # inputs, outputs
    number: int
    on_each: int | None  # None: not a whole number
    unit: int

    def words(self, num_ranks: int, kind: str) -> str:
        if num_ranks == 1:
            return f"{self.name} has {self.number} {self.what}, no multiple of {kind} {self.unit}"
        if self.on_each is None:
            return f"{self.name} has {self.number} {self.what}, which {num_ranks} GPUs cannot share evenly"
        each = f"{self.on_each} on each of {num_ranks} GPUs"
        return f"{self.name} has {self.number} {self.what}, {each}, no multiple of {kind} {self.unit}"


def misfits(quantized: Format, layers: Mapping[str, LayerSize], heads: Heads | None, num_ranks: int) -> list[Misfit]:
    """Of the quantized ``layers`` those that vLLM refuses to divide among ``num_ranks``, one of each name."""
    found: dict[str, Misfit] = {}
    for name, size in layers.items():
        for misfit in _of_layer(quantized, name, size, heads, num_ranks):
            found.setdefault(misfit.name, misfit)
    return list(found.values())


def why_not_split(quantized: Format, sizes: ModelSizes, layers: Mapping[str, LayerSize], num_ranks: int) -> str | None:
    """Why vLLM would not load the layers on ``num_ranks`` GPUs, without what would do; None where it would."""
    if not (wrong := misfits(quantized, layers, sizes.heads, num_ranks)):
        return None
    kind = "block" if quantized.weights.block_structure else "group"
    return "; ".join(misfit.words(num_ranks, kind) for misfit in wrong)


def fitting_ranks(quantized: Format, sizes: ModelSizes, layers: Mapping[str, LayerSize], most: int) -> list[int]:
    """Fewer GPUs that would do."""
    heads = sizes.heads
    return [
        number
        for number in range(1, most)
        if (heads is None or heads.queries % number == 0) and not misfits(quantized, layers, heads, number)
    ]


def fitting_groups(
    quantized: Format, sizes: ModelSizes, layers: Mapping[str, LayerSize], num_ranks: int
) -> Iterator[Format]:
    """The same with other groups that would do, the largest first."""
    for size in _GROUPS if quantized.takes_group_size else ():
        other = quantized.with_group_size(size)
        if not misfits(other, layers, sizes.heads, num_ranks):
            yield other


def rotates_at_run_time(quantization: Mapping[str, Any]) -> bool:
    """Whether a ``quantization_config`` has rotations that are not in the weights already."""
    groups = ((quantization.get("transform_config") or {}).get("config_groups") or {}).values()
    places = [apply.get("location") for group in groups for apply in group.get("apply") or ()]
    return any(place not in _FUSED_LOCATIONS for place in places)


def _of_layer(quantized: Format, name: str, size: LayerSize, heads: Heads | None, num_ranks: int) -> Iterator[Misfit]:
    kind, inside = name.rpartition(".")[2], alike(name)
    unit, block = quantized.weights.columns_per_scale, quantized.weights.block_structure
    if unit is None:
        return
    if kind in _BY_INPUTS and num_ranks > 1:
        yield from _misfit(inside, "inputs", size.columns, num_ranks, unit)
    if block is None:
        return
    for outputs, is_divided, may_end in _products(kind, size, heads):
        among = num_ranks if is_divided else min(num_ranks, (heads.keys if heads else num_ranks))
        if num_ranks > 1 or not may_end:
            yield from _misfit(inside, "outputs", outputs, among, block[0])


def _products(kind: str, size: LayerSize, heads: Heads | None) -> Iterator[tuple[int, bool, bool]]:
    """Outputs of each part of a layer, whether all ranks divide them, and whether they may end within a block.

    Keys and values of fewer heads than ranks are whole heads on each.
    """
    if kind in _FUSED:
        if kind == "gate_up_proj":
            yield from ((size.rows // 2, True, may_end) for may_end in (False, True))
        elif heads is not None:
            yield heads.queries * heads.size, True, False
            yield from ((heads.keys * heads.size, False, may_end) for may_end in (False, True))
    elif kind in (*_QUERIES, *_KEYS, *_BY_OUTPUTS):
        yield size.rows, kind not in _KEYS, kind in _LAST_OF_PRODUCT


def _misfit(name: str, what: str, number: int, num_ranks: int, unit: int) -> Iterator[Misfit]:
    on_each = number // num_ranks if number % num_ranks == 0 else None
    if on_each is None or on_each % unit:
        yield Misfit(name, what, number, on_each, unit)
