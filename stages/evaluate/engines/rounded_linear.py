"""vLLM's unquantized linear layers with their inputs rounded: the quantization method ``simulated`` of a dense copy.

Importing this module registers the method with vLLM, in each process that opens such a copy or is sent its config.
"""

from typing import Any

import torch  # noqa: TID253
from vllm.model_executor.layers.linear import (  # noqa: TID253
    LinearBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import register_quantization_config  # noqa: TID253
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig  # noqa: TID253
from vllm.model_executor.parameter import PerTensorScaleParameter  # noqa: TID253

from stages.errors import ConfigError
from stages.evaluate.engines.rounding import METHOD, InputFormat, round_input


@register_weight_loader_v2_supported_method
class RoundedLinearMethod(UnquantizedLinearMethod):  # type: ignore[misc]
    """A dense product of the rounded input.

    Layers that vLLM fuses (query, key and value) read one input.  Should their static scales differ, the largest is
    taken, as vLLM's own kernels do.
    """

    def __init__(self, input_format: InputFormat) -> None:
        super().__init__()
        self._format = input_format

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *sizes_and_dtype: Any,
        **attributes: Any,
    ) -> None:
        """The dense weight, and the scale of each fused part where the format is static."""
        super().create_weights(layer, input_size_per_partition, output_partition_sizes, *sizes_and_dtype, **attributes)
        if self._format.granularity == "tensor":
            scales = torch.full((len(output_partition_sizes),), torch.nan, dtype=torch.float32)
            parameter = PerTensorScaleParameter(data=scales, weight_loader=attributes["weight_loader"])
            layer.register_parameter("input_scale", parameter)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """One scale for all fused parts."""
        if self._format.granularity == "tensor":
            scale = layer.input_scale.max()
            if not (torch.isfinite(scale) and scale > 0):
                raise ConfigError(f"{layer.prefix}: its input has no static scale in the checkpoint; quantize it again")
            layer.input_scale = torch.nn.Parameter(scale, requires_grad=False)
        super().process_weights_after_loading(layer)

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Output (tokens, outputs) of input (tokens, inputs)."""
        scale = layer.input_scale if self._format.granularity == "tensor" else None
        return super().apply(layer, round_input(x, self._format.kind, scale), bias)


@register_quantization_config(METHOD)
class SimulatedConfig(QuantizationConfig):  # type: ignore[misc]
    """``inputs``: the format of each linear layer's input by the layer's name, None where it is not rounded."""

    def __init__(self, inputs: dict[str, InputFormat | None]) -> None:
        super().__init__()
        self._inputs = inputs

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SimulatedConfig":
        """Of a dense copy's ``quantization_config``."""
        return cls({name: args and InputFormat(**args) for name, args in config["inputs"].items()})

    def get_name(self) -> str:
        """What the checkpoint's ``quant_method`` says."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """All an engine can be asked for."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of a GPU; there is no need of one."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Everything is in ``config.json``."""
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Layers by the names that vLLM's model gives them."""
        self._inputs = hf_to_vllm_mapper.apply_dict(self._inputs)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> UnquantizedLinearMethod | None:
        """Raises ConfigError for a layer that would not be computed as its checkpoint says."""
        from vllm.model_executor.layers.fused_moe import RoutedExperts

        if isinstance(layer, LinearBase):
            input_format = self._input_format(prefix)
            return RoundedLinearMethod(input_format) if input_format else UnquantizedLinearMethod()
        if isinstance(layer, RoutedExperts) or self._inputs.get(prefix):
            raise ConfigError(f"{prefix}: only inputs of linear layers can be simulated on a CPU; use engine=vllm_gpu")
        return None

    def _input_format(self, prefix: str) -> InputFormat | None:
        path, _, name = prefix.rpartition(".")
        parts = [f"{path}.{part}" if path else part for part in self.packed_modules_mapping.get(name, [name])]
        if unknown := [part for part in parts if part not in self._inputs]:
            raise ConfigError(
                f"{', '.join(unknown)}: layers of vLLM's model that are not the checkpoint's; use engine=transformers"
            )
        formats = {self._inputs[part] for part in parts}
        if len(formats) > 1:
            raise ConfigError(
                f"{prefix}: vLLM fuses layers whose inputs have different formats; use engine=transformers"
            )
        return formats.pop()
