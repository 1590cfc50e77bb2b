"""What a plan knows of checkpoints that others have quantized: of one that lies here what its headers say, of one on a
hub what is declared.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.schema import Config, Weights
from pipeline.errors import UserError
from pipeline.planning.remembered import cached, stamps
from stages.checkpoints.checks import check_made_of, check_quantized_path
from stages.checkpoints.description import ModelDescription
from stages.checkpoints.formats import Format
from stages.checkpoints.loadable import check_method, check_on_cpu
from stages.errors import StageError
from stages.evaluate.config import EngineKind
from stages.local_files import digest_tree
from stages.published import PublishedSource


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint's place, and what is known before it is fetched; None where it is not."""

    source: PublishedSource
    method: str | None
    num_bits: int | None
    size_gib: float | None
    formats: tuple[Format, ...] = ()
    layers: frozenset[str] = frozenset()  # those that are quantized
    rotates: bool = False  # at run time
    has_narrow_cache: bool = False  # keys and values of 8 bits


def published_of(
    configs: Iterable[Config], bases: Mapping[str, ModelDescription | None], cache_dir: Path | None
) -> dict[str, Published]:
    """By ``published_key``.  Raises UserError for what is none, or of another model, or what no engine here loads."""
    found: dict[str, Published] = {}
    for config in configs:
        if not config.recipe.is_published:
            continue
        _check_listed(config)
        key = published_key(config)
        if key not in found:
            found[key] = _described(config, bases[config.model.name], cache_dir)
        _check_loads(config, found[key].method)
    return found


def published_key(config: Config) -> str:
    """Of configs with the same key the same holds."""
    return repr([config.model.name, config.loads_model, config.published])


def _check_listed(config: Config) -> None:
    model, recipe = config.model, config.recipe
    if config.published is None:
        listed = f"it lists {', '.join(model.published)}" if model.published else "it lists none"
        raise UserError(
            f"model {model.name} has no published checkpoint {recipe.published!r}; {listed}: add published."
            f"{recipe.published} with repo_id and revision, or path, to the model's file, or give recipe.source"
        )
    if model.weights is Weights.dummy:
        raise UserError(
            f"model {model.name} has dummy weights, and recipe {recipe.name} a checkpoint's own: leave one of both out"
        )


def _described(config: Config, base: ModelDescription | None, cache_dir: Path | None) -> Published:
    source = config.published
    assert source is not None, "_check_listed has refused it"
    if source.path is None or not config.loads_model:
        formats = () if source.format is None else (source.format,)
        return Published(source, source.method, source.bits, source.size_gib, formats)
    path = Path(source.path).resolve()
    try:
        model, quantized = check_quantized_path(path)
        if base is not None:
            check_made_of(path, model, base)
    except StageError as error:
        raise UserError(f"recipe {config.recipe.name} of model {config.model.name}: {error}") from None
    digest = cached(cache_dir, ["tree", str(path), stamps(path)], lambda: digest_tree(path))
    return Published(
        source=replace(source, path=str(path), digest=digest),
        method=quantized.method,
        num_bits=quantized.num_bits,
        size_gib=quantized.size_gib,
        formats=quantized.formats,
        layers=quantized.layers,
        rotates=quantized.rotates,
        has_narrow_cache=quantized.has_narrow_cache,
    )


def _check_loads(config: Config, method: str | None) -> None:
    engine = config.engine
    if method is None:
        return
    try:
        if engine.kind is EngineKind.transformers:
            check_method(method)
        elif engine.kind is EngineKind.vllm and not engine.on_gpu:
            check_on_cpu(method, engine.dtype)
    except StageError as error:
        raise UserError(f"recipe {config.recipe.name} of model {config.model.name}: {error}") from None
