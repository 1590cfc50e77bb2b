"""Bring a checkpoint into the store that somebody else has quantized: what a recipe would have made, made elsewhere."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stages.checkpoints.checks import ADAPTER, check_made_of, check_quantized_path
from stages.checkpoints.description import describe
from stages.checkpoints.formats import FORMATS, Format
from stages.checkpoints.headers import num_stored_bytes, read_tensor_infos
from stages.checkpoints.kernels import computed_as
from stages.checkpoints.quantized import Quantized
from stages.checkpoints.speech import check_speaks_alike, take_template
from stages.documents import read_json, write_json
from stages.errors import DataError
from stages.fetch import ModelSource, bring, check_revision, named
from stages.fields import execution, identity

VERSION = 1
QUANTIZED = "quantized.json"


@dataclass(kw_only=True, slots=True)
class PublishedSource:
    """Where a quantized checkpoint lies: ``repo_id`` (hub, at ``revision``) or ``path`` (local); neither: nowhere.

    Of a repository ``method`` (compressed-tensors, fp8, awq, gptq, modelopt, mxfp4), ``bits`` of a weight, ``scheme``
    (the preset of compressed-tensors that has its weights and inputs) and ``size_gib`` of all weights may be declared,
    so that a plan can reason before any byte is fetched.
    """

    repo_id: str | None = identity(None)
    revision: str | None = identity(None)
    path: str | None = execution(None)
    digest: str | None = identity(None)  # of a local path's bytes; filled in when the plan is made
    method: str | None = execution(None)
    bits: int | None = execution(None)
    scheme: str | None = execution(None)
    size_gib: float | None = execution(None)
    note: str | None = execution(None)  # shown with its results

    def __post_init__(self) -> None:
        if self.repo_id is not None and self.path is not None:
            raise ValueError(
                f"checkpoint {self.repo_id}: it lies in one place: give repo_id with revision, or path={self.path}"
            )
        if self.repo_id is not None and self.revision is None:
            raise ValueError(f"checkpoint {self.repo_id}: a hub repository needs revision, the full 40-hex commit sha")
        if self.scheme is not None and (self.scheme not in FORMATS or self.method is None):
            raise ValueError(
                f"checkpoint {self.repo_id or self.path}: scheme says what a method stores, as one of "
                f"{', '.join(FORMATS)}; got {self.scheme!r} with method {self.method}"
            )
        check_revision(f"checkpoint {self.repo_id}", self.revision)

    @property
    def is_somewhere(self) -> bool:
        """Whether it names a place."""
        return self.repo_id is not None or self.path is not None

    @property
    def format(self) -> Format | None:
        """What is declared of it; None where its scheme is not."""
        if self.scheme is None or self.method is None:
            return None
        declared = FORMATS[self.scheme]
        return declared if self.method == "compressed-tensors" else replace(declared, packing=self.method)

    @property
    def as_model(self) -> ModelSource:
        """The same place, as that of a model."""
        return ModelSource(repo_id=self.repo_id, revision=self.revision, path=self.path, digest=self.digest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What ``quantized.json`` says: how the checkpoint is quantized, in a line and in parts."""

    words: str
    method: str
    bits: int
    rounds: str | None  # what its groups round activations to (fp8); None: nothing
    kv_cache: str | None
    layers: list[str]
    kept: list[str]


def fetch_published(config: PublishedSource, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write the checkpoint as it was published, and ``quantized.json``, what its headers say of it.

    Metrics ``size_gib``, ``compression_ratio`` (base bytes / bytes), ``num_quantized_layers``, ``num_kept_layers``.
    ``inputs``: the ``model`` that it was made from.  Raises DataError when the source is out of reach or not as
    promised, CheckpointError for one that is damaged, not quantized, in an unknown form, or of another model.
    """
    source, base = config.as_model, describe(inputs["model"])
    with named(out, source):
        if config.path is None:  # the small files first: another model's weights are not worth their way
            bring(source, out, has_weights=False)
            check_made_of(out, describe(out, has_weights=False), base)
        bring(source, out, is_quantized=True)
        model, quantized = check_quantized_path(out)
        check_made_of(out, model, base)
        _check_declared(config, quantized)
        check_speaks_alike(out, inputs["model"])
    is_told = take_template(out, inputs["model"])
    (out / ADAPTER).unlink(missing_ok=True)
    write_json(out / QUANTIZED, asdict(_described(quantized, is_told)), indent=2)
    return {
        "size_gib": quantized.size_gib,
        "compression_ratio": num_stored_bytes(read_tensor_infos(inputs["model"])) / quantized.num_bytes,
        "num_quantized_layers": len(quantized.layers),
        "num_kept_layers": len(quantized.kept),
    }


def read_described(checkpoint: Path) -> Described | None:
    """How a checkpoint of somebody else is quantized; None of one that was made here."""
    return read_json(checkpoint / QUANTIZED, Described) if (checkpoint / QUANTIZED).is_file() else None


def _check_declared(config: PublishedSource, quantized: Quantized) -> None:
    """What a plan was told must be so: its kernels and labels rest on it."""
    if config.format is None:
        return
    declared, found = computed_as([config.format]), computed_as(quantized.formats)
    if declared != found:
        raise DataError(
            f"it is {found}, and its scheme {config.scheme} declares {declared}: correct it, or leave it out"
        )


def _described(quantized: Quantized, is_told: bool) -> Described:
    return Described(
        words=quantized.words + ("; asked with the base's chat template, its own is another" if is_told else ""),
        method=quantized.method,
        bits=quantized.num_bits,
        rounds=quantized.rounds,
        kv_cache=quantized.kv_cache,
        layers=sorted(quantized.layers),
        kept=sorted(quantized.kept),
    )
