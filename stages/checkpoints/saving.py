"""Whether what a loaded model says of itself can be written again, tried before anything expensive is done to it."""

import tempfile
from typing import TYPE_CHECKING, Any

from stages.errors import DataError, one_line

if TYPE_CHECKING:
    from transformers import GenerationConfig


def make_saveable(model: Any) -> None:
    """Give ``model`` generation settings that can be written; DataError for a config that cannot.

    Published ones may be refused: they are kept as the file that they are in.
    """
    model.generation_config = _generation_config(model.config)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            model.config.save_pretrained(scratch)
            model.generation_config.save_pretrained(scratch)
        except (ValueError, TypeError) as error:
            why = one_line(error, limit=200)
            raise DataError(
                f"the model's config.json cannot be written again ({why}): mend it in the source"
            ) from error


def _generation_config(config: Any) -> "GenerationConfig":
    """What config.json says of generation, without what transformers would not write, such as a padding token -1."""
    from transformers import GenerationConfig

    found = GenerationConfig.from_model_config(config)
    try:
        found.validate(strict=True)
    except ValueError:
        return GenerationConfig(bos_token_id=found.bos_token_id, eos_token_id=found.eos_token_id)
    return found
