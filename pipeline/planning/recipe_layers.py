"""Whether the layers that recipes name are layers of the models that lie here."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.config.schema import Config, Weights
from pipeline.errors import UserError
from stages.checkpoints.headers import read_tensor_infos
from stages.checkpoints.layer_names import stored_layers
from stages.errors import CheckpointError
from stages.quantize import Algorithm, check_layers


def check_recipe_layers(configs: Iterable[Config]) -> None:
    """Raise UserError, naming what may have been meant; what is not known here is checked when the model is loaded."""
    layers: dict[str, list[str] | None] = {}
    for config in configs:
        path = config.model.source.path
        is_loaded = config.loads_model and config.model.weights is Weights.stored
        if path is None or not is_loaded or config.recipe.algorithm is Algorithm.none:
            continue
        known = layers[path] if path in layers else layers.setdefault(path, _layers(Path(path)))
        try:
            if known is not None:
                check_layers(config.recipe, known)
        except ValueError as error:
            raise UserError(f"model {config.model.name}: {error}") from None


def _layers(model_dir: Path) -> list[str] | None:
    try:
        return stored_layers(read_tensor_infos(model_dir))
    except CheckpointError:  # its own check says that better
        return None
