"""What a model that lies here is: read from its config and headers, remembered beside the store where that is slow."""

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from pipeline.config.schema import Config, ModelConfig, Weights
from pipeline.errors import UserError
from pipeline.planning.remembered import cached, stamps
from stages.checkpoints.checks import check_model_path
from stages.checkpoints.description import ModelDescription
from stages.checkpoints.sizes import ModelSizes
from stages.errors import StageError
from stages.quantize import needs_calibration


def describe_local(model: ModelConfig, cache_dir: Path | None, has_weights: bool) -> ModelDescription | None:
    """Of a model that lies here; None of one that does not.  Raises UserError for what is none."""
    if model.weights is Weights.dummy or model.source.path is None:
        return None
    path = Path(model.source.path).resolve()
    try:
        described = check_model_path(path, has_weights)
    except StageError as error:
        raise UserError(f"model {model.name}: {error}") from None
    if described.irregular and (refusal := _refusal(path, cache_dir)):
        raise UserError(f"model {model.name}: {refusal}")
    return described


def sizes_of(model: ModelConfig, described: ModelDescription | None) -> ModelSizes | None:
    """By its weights, or by the shape that is given."""
    if described is not None and described.infos:
        return described.sizes
    return None if model.shape is None else ModelSizes.of_shape(model.shape)


def check_positions(configs: Iterable[Config], described: dict[str, ModelDescription | None]) -> None:
    """Raise UserError where more tokens are asked of a model at once than its context has."""
    for config in configs:
        found = described[config.model.name]
        if found is None or (most := found.num_positions) is None:
            continue
        for name, length in _lengths(config).items():
            if length > most:
                raise UserError(
                    f"{name}={length} is more than the {most} positions of model {config.model.name} "
                    "(max_position_embeddings): lower it"
                )


def _lengths(config: Config) -> dict[str, int]:
    """Tokens that are read at once, by the setting that says so."""
    found = {} if config.engine.is_elsewhere else {"engine.max_model_len": config.engine.max_model_len}
    if config.loads_model and needs_calibration(config.recipe):
        found["calibration.max_seq_length"] = config.calibration.max_seq_length
    if config.loads_model and config.drift.text is not None:
        found["drift.text.max_seq_length"] = config.drift.text.max_seq_length
    return found


def _refusal(path: Path, cache_dir: Path | None) -> str:
    """What transformers' own loader has against a model of unequal blocks; empty where it has nothing.

    A process of its own is asked: this one stays free of torch.
    """
    key = ["loads 1", metadata.version("transformers"), str(path), stamps(path)]
    return str(cached(cache_dir, key, lambda: _asked(path)))


def _asked(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "stages.checkpoints.loaded", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    return done.stdout.strip()  # where it cannot be asked, the model's fetch will say it
