"""What each document adds to a task's difference and base, so that tasks that ask the same ones have a joint error."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.compare.artifact import INFLUENCE_COLUMNS
from stages.compare.config import CompareConfig
from stages.compare.design import Part, influences
from stages.compare.evidence import Evidence
from stages.compare.samples import Indices, Leaf
from stages.compare.whole import weights_of
from stages.statistics import Floats

_DIGITS = 16  # of a digest: 64 bits tell documents apart


def influence_table(
    config: CompareConfig, leaves: Mapping[str, Leaf], clusters: Mapping[str, Indices], evidence: Sequence[Evidence]
) -> pa.Table | None:
    """A row for each document that both were scored on; None where some leaf has nothing to compare with.

    Influences are null where an aggregation has no value of each document.
    """
    pairs = [each.pairs for each in evidence if each.pairs is not None]
    parts = [pair.part for pair in pairs if pair.part is not None]
    documents = dict(zip(config.leaves, [pair.documents for pair in pairs if pair.documents is not None], strict=False))
    if len(parts) < len(evidence) or len(documents) < len(evidence):
        return None
    members = [clusters[leaf][rows] for leaf, rows in documents.items()]
    raw = _of_documents(parts, config.weight_by_size, [1.0] * len(parts), members)
    units = [100 / (1 - config.baseline_of(leaf)) for leaf in config.leaves]
    scaled = _of_documents(parts, False, units, members) if config.leaf_baselines else units[0] * raw
    if not config.is_normalized:
        scaled = np.full_like(raw, np.nan)
    names = [_digests(leaves, documents, column) for column in ("doc_digest", "cluster")]
    columns = [*names, *(pa.array(each, from_pandas=True) for each in (*raw.T, *scaled.T))]
    return pa.table(columns, names=list(INFLUENCE_COLUMNS))


def _of_documents(
    parts: Sequence[Part], weight_by_size: bool, scales: Sequence[float], members: list[Indices]
) -> Floats:
    """Where a part's rows are of clusters, each document has an even share: only their sum is asked for."""
    found = influences(parts, weights_of([part.n for part in parts], weight_by_size), scales)
    rows = np.split(found, np.cumsum([len(part.values) for part in parts])[:-1])
    return np.concatenate([_shared(*each) for each in zip(parts, rows, members, strict=True)])


def _shared(part: Part, rows: Floats, members: Indices) -> Floats:
    if np.array_equal(part.clusters, members):
        return rows
    names, places, sizes = np.unique(members, return_inverse=True, return_counts=True)
    if not np.array_equal(part.clusters, names):
        return np.full((len(members), rows.shape[1]), np.nan)
    return np.asarray(rows[places] / sizes[places, None])


def _digests(leaves: Mapping[str, Leaf], documents: Mapping[str, Indices], column: str) -> pa.ChunkedArray:
    """Beginnings; null where no cluster is declared."""
    found = [
        leaves[leaf].documents[column].take(pa.array(rows)).cast(pa.string()).combine_chunks()
        if column in leaves[leaf].documents.column_names
        else pa.nulls(len(rows), pa.string())
        for leaf, rows in documents.items()
    ]
    return pc.utf8_slice_codeunits(pa.chunked_array(found), 0, _DIGITS)
