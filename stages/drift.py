"""How far a quantized checkpoint's expectations drift from its base's, token by token on the same text."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.calibrate import read_sequences
from stages.checkpoints.description import describe
from stages.documents import read_json, write_json, write_table
from stages.errors import CheckpointError, ConfigError
from stages.statistics import (
    NO_INTERVAL,
    Floats,
    Interval,
    StatisticsConfig,
    generator,
    percentile_interval,
    resample_means,
)
from stages.units import GIB

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
DOCUMENTS, FACTS = "drift.parquet", "drift.json"


@dataclass(kw_only=True, slots=True)
class DriftConfig(StatisticsConfig):
    """Statistics of the drift; the text is an input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftFacts:
    """Means over the tokens of the text, with their intervals; see ``drift``."""

    num_documents: int
    num_tokens: int
    mean_kl: float
    top1_agreement: float
    loss: float | None
    base_loss: float | None
    mean_kl_low: float | None
    mean_kl_high: float | None
    top1_agreement_low: float | None
    top1_agreement_high: float | None


def drift(config: DriftConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``drift.parquet`` (a row per document) and ``drift.json`` (the means with their intervals).

    ``inputs``: ``base`` and ``checkpoint`` (model directories) and ``text`` (token sequences as ``calibrate`` writes
    them, each a document).  Metrics: ``mean_kl`` (nats per token, over the whole vocabulary, from base to checkpoint)
    and ``top1_agreement`` with the bootstrap intervals of resampled documents, ``loss`` and ``base_loss`` (nats per
    token), ``num_documents``, ``num_tokens``.  Raises CheckpointError for expectations that are no numbers,
    ConfigError when what must be kept meanwhile does not fit the disk.
    """
    import pyarrow as pa

    texts = read_sequences(inputs["text"])
    with TemporaryDirectory(prefix="drift_") as kept_dir:
        _check_room(texts, inputs["base"], Path(kept_dir))
        _keep_base(inputs["base"], texts, Path(kept_dir))
        rows = list(_rows(inputs["checkpoint"], texts, Path(kept_dir)))
    write_table(out / DOCUMENTS, pa.Table.from_pylist(rows))
    facts = _facts(config, {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]})
    write_json(out / FACTS, asdict(facts))
    return asdict(facts)


def read_drift(directory: Path) -> DriftFacts:
    """The means that ``drift`` wrote."""
    return read_json(directory / FACTS, DriftFacts)


def _check_room(texts: Sequence[Sequence[int]], base_dir: Path, kept_dir: Path) -> None:
    vocabulary = describe(base_dir, has_weights=False).size("vocab_size") or 0
    needed = 4 * sum(map(len, texts)) * vocabulary
    free = shutil.disk_usage(kept_dir).free
    if needed > free:
        raise ConfigError(
            f"the base's expectations on the drift text take {needed / GIB:.1f} GiB and {kept_dir.parent} has "
            f"{free / GIB:.1f}: set TMPDIR, or lower drift.text.num_calibration_samples or max_seq_length"
        )


def _keep_base(base_dir: Path, texts: Sequence[Sequence[int]], kept_dir: Path) -> None:
    """One model at a time is in memory; what the base expected waits on disk."""
    for index, (_, log_probs) in enumerate(_read(base_dir, texts)):
        np.save(kept_dir / f"{index}.npy", log_probs.numpy())


def _rows(checkpoint_dir: Path, texts: Sequence[Sequence[int]], kept_dir: Path) -> Iterator[dict[str, Any]]:
    import torch

    from stages.checkpoints.next_token import agreements, divergences, surprises

    for index, (input_ids, log_probs) in enumerate(_read(checkpoint_dir, texts)):
        base_log_probs = torch.from_numpy(np.load(kept_dir / f"{index}.npy"))
        kl = float(divergences(base_log_probs, log_probs).mean())
        if not math.isfinite(kl):
            raise CheckpointError(f"document {index} of the drift text has a divergence that is no number")
        yield {
            "document": index,
            "num_tokens": len(input_ids),
            "mean_kl": kl,
            "top1_agreement": float(agreements(base_log_probs, log_probs).mean()),
            "loss": float(surprises(log_probs, input_ids).sum()) / max(1, len(input_ids) - 1),
            "base_loss": float(surprises(base_log_probs, input_ids).sum()) / max(1, len(input_ids) - 1),
        }


def _read(model_dir: Path, texts: Sequence[Sequence[int]]) -> Iterator[tuple["Tensor", "Tensor"]]:
    import torch

    from stages.checkpoints.next_token import next_token_log_probs, open_model

    with open_model(model_dir) as model:
        for text in texts:
            input_ids = torch.tensor(text)
            yield input_ids, next_token_log_probs(model, input_ids)
        del model


def _facts(config: DriftConfig, columns: Mapping[str, Floats]) -> DriftFacts:
    """Means over tokens; documents are resampled, because the tokens of one are not independent."""
    sizes = columns["num_tokens"]
    kl, agreement = (_interval(config, name, columns[name] * sizes, sizes) for name in ("mean_kl", "top1_agreement"))
    return DriftFacts(
        num_documents=len(sizes),
        num_tokens=int(sizes.sum()),
        mean_kl=_mean(columns["mean_kl"], sizes),
        top1_agreement=_mean(columns["top1_agreement"], sizes),
        loss=_mean_of_predicted(columns["loss"], sizes),
        base_loss=_mean_of_predicted(columns["base_loss"], sizes),
        mean_kl_low=kl[0],
        mean_kl_high=kl[1],
        top1_agreement_low=agreement[0],
        top1_agreement_high=agreement[1],
    )


def _mean(values: Floats, weights: Floats) -> float:
    return float((values * weights).sum() / weights.sum())


def _mean_of_predicted(values: Floats, sizes: Floats) -> float | None:
    """Of every token but a document's first."""
    return _mean(values, sizes - 1) if sizes.max() > 1 else None


def _interval(config: DriftConfig, name: str, sums: Floats, sizes: Floats) -> Interval:
    if len(sums) < 2:
        return NO_INTERVAL
    draws = resample_means(np.column_stack([sums, sizes]), config.num_resamples, generator(config.seed, name))
    return percentile_interval(draws[:, 0] / draws[:, 1], config.confidence)
