"""A checkpoint of a shape and a format with no weights in it: vLLM fills them in at random (``--load-format dummy``).

What a kernel costs does not depend on the numbers it multiplies, so speed can be measured of a model that nobody has
downloaded or quantized.  Its answers mean nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.checkpoints.formats import Format
from stages.checkpoints.shape import ModelShape, weight_gib
from stages.checkpoints.sizes import ModelSizes
from stages.documents import write_json
from stages.errors import ConfigError
from stages.fields import identity
from stages.quantize import Algorithm, RecipeConfig, check_fits, weight_format

VERSION = 1
_CONTROL_TOKENS = ["<|begin|>", "<|end|>", "<|unknown|>"]


@dataclass(kw_only=True, slots=True)
class DummyConfig:
    """``shape`` holds the fields of a ModelShape: here the numbers are all that the model is."""

    shape: dict[str, Any] = identity()
    recipe: RecipeConfig = identity()
    max_position_embeddings: int = identity(131_072)


def dummy(config: DummyConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``config.json`` of a Llama and a tokenizer; ``size_gib`` is what the weights would take.

    Raises ConfigError for a group size that does not fit.
    """
    shape = ModelShape(**config.shape)
    try:
        check_fits(config.recipe, ModelSizes.of_shape(shape))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    model = _llama(shape, config.max_position_embeddings)
    quantized = weight_format(config.recipe)
    if quantized is not None:
        model["quantization_config"] = _quantization(config.recipe, quantized)
    write_json(out / "config.json", model)
    _write_tokenizer(shape.vocab_size, out)
    return {"size_gib": weight_gib(shape, quantized)}


def _llama(shape: ModelShape, max_position_embeddings: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _quantization(recipe: RecipeConfig, quantized: Format) -> dict[str, Any]:
    """What llm-compressor would write into ``config.json`` for this recipe."""
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, preset_name_to_scheme

    scheme = preset_name_to_scheme(str(recipe.scheme), recipe.targets)
    chosen = {"group_size": quantized.weights.group_size, "observer": recipe.observer}
    if recipe.algorithm is Algorithm.gptq:
        chosen["actorder"] = recipe.actorder
    scheme.weights = scheme.weights.model_copy(update=chosen)
    scheme.format = CompressionFormat(quantized.packing)
    described: dict[str, Any] = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=recipe.ignore,
        format=quantized.packing,
        quantization_status=QuantizationStatus.COMPRESSED,
    ).model_dump(mode="json")
    return described


def _write_tokenizer(vocab_size: int, out: Path) -> None:
    """One token for every byte, and names for the rest of the vocabulary, so that every answer can be written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*_CONTROL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"Ġ{index}" for index in range(vocab_size - len(tokens))]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end, unknown = _CONTROL_TOKENS
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, unk_token=unknown, pad_token=end
    )
    wrapped.save_pretrained(out)
