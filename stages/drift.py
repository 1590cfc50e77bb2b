"""How far a quantized checkpoint's expectations drift from its base's, token by token on the same text."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

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

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
_GIB = 2**30


@dataclass(kw_only=True, slots=True)
class DriftConfig(StatisticsConfig):
    """Statistics of the drift; the text is an input."""


def drift(config: DriftConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``drift.parquet`` (a row per document) and ``drift.json`` (the means with their intervals).

    ``inputs``: ``base`` and ``checkpoint`` (model directories) and ``text`` (token sequences as ``calibrate`` writes
    them, each a document).  Metrics: ``mean_kl`` (nats per token, over the whole vocabulary, from base to checkpoint)
    and ``top1_agreement`` with the bootstrap intervals of resampled documents, ``loss`` and ``base_loss`` (nats per
    token), ``num_documents``, ``num_tokens``.  Raises CheckpointError for expectations that are no numbers,
    ConfigError when what must be kept meanwhile does not fit the disk.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pq.read_table(inputs["text"] / "calibration.parquet")["input_ids"].to_pylist()
    with TemporaryDirectory(prefix="drift_") as kept_dir:
        _check_room(texts, inputs["base"], Path(kept_dir))
        _keep_base(inputs["base"], texts, Path(kept_dir))
        rows = list(_rows(inputs["checkpoint"], texts, Path(kept_dir)))
    pq.write_table(pa.Table.from_pylist(rows), out / "drift.parquet", compression="zstd")
    facts = _facts(config, {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]})
    (out / "drift.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return facts


def _check_room(texts: Sequence[Sequence[int]], base_dir: Path, kept_dir: Path) -> None:
    config = json.loads((base_dir / "config.json").read_text())
    needed = 4 * sum(map(len, texts)) * config.get("vocab_size", 0)
    free = shutil.disk_usage(kept_dir).free
    if needed > free:
        raise ConfigError(
            f"the base's expectations on the drift text take {needed / _GIB:.1f} GiB and {kept_dir.parent} has "
            f"{free / _GIB:.1f}: set TMPDIR, or lower drift.text.num_calibration_samples or max_seq_length"
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


def _facts(config: DriftConfig, columns: Mapping[str, Floats]) -> dict[str, float | None]:
    """Means over tokens; documents are resampled, because the tokens of one are not independent."""
    sizes = columns["num_tokens"]
    facts: dict[str, float | None] = {"num_documents": len(sizes), "num_tokens": int(sizes.sum())}
    for name in ("mean_kl", "top1_agreement"):
        facts[name] = float((columns[name] * sizes).sum() / sizes.sum())
    for name in ("loss", "base_loss"):  # of every token but a document's first
        facts[name] = float((columns[name] * (sizes - 1)).sum() / (sizes - 1).sum()) if sizes.max() > 1 else None
    for name in ("mean_kl", "top1_agreement"):
        facts[f"{name}_low"], facts[f"{name}_high"] = _interval(config, name, columns[name] * sizes, sizes)
    return facts


def _interval(config: DriftConfig, name: str, sums: Floats, sizes: Floats) -> Interval:
    if len(sums) < 2:
        return NO_INTERVAL
    draws = resample_means(np.column_stack([sums, sizes]), config.num_resamples, generator(config.seed, name))
    return percentile_interval(draws[:, 0] / draws[:, 1], config.confidence)
