"""The documents that a trial answers otherwise than its base: what was asked, what is right, and both answers.

Those with the largest change first, and of equal ones in the order of their digests, which is the same for all trials
and has nothing to do with what they are about: the first hundred are a fair sample of all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.compare.artifact import FLIPS_SCHEMA, LOST, WON
from stages.compare.samples import Indices, Leaf, Pairing
from stages.evaluate.artifact import read_samples

_OF_BOTH = ["leaf", "doc_id", "responses", "filtered", "loglikelihoods"]
_OF_DOCUMENT = ["question", "choices", "target"]


def flips_of(
    metric: str | None,
    lower_is_better: bool,
    trial: Mapping[str, Leaf],
    base: Mapping[str, Leaf],
    pairings: Mapping[str, Pairing],
    inputs: Mapping[str, Path],
) -> pa.Table:
    """A row for each document whose score in ``metric`` is another one; none where documents have no scores of their
    own, and for a base.
    """
    found = [
        table
        for name, pairing in pairings.items()
        if metric is not None and (table := _changed(trial[name], base[name], pairing, metric, lower_is_better))
    ]
    if not found or metric is None:
        return FLIPS_SCHEMA.empty_table()
    changed = pa.concat_tables(found)
    changed = changed.take(pc.sort_indices(changed, [("size", "descending"), ("doc_digest", "ascending")]))
    return _table(changed, {role: _texts(role, changed, inputs) for role in ("trial", "base")}, metric)


def _changed(trial: Leaf, base: Leaf, pairing: Pairing, metric: str, lower_is_better: bool) -> pa.Table | None:
    """Which documents of a leaf, with both scores; None where documents have no scores of their own."""
    columns = [leaf.documents[metric] for leaf in (trial, base)]
    if not all(pa.types.is_floating(column.type) for column in columns):
        return None
    rows = (pairing.trial, pairing.base)
    ours, theirs = (column.to_numpy()[own] for column, own in zip(columns, rows, strict=True))
    gain = (theirs - ours) if lower_is_better else (ours - theirs)
    changed = np.flatnonzero(np.nan_to_num(gain) != 0)
    ids = [leaf.documents["doc_id"].to_numpy()[own[changed]] for leaf, own in zip((trial, base), rows, strict=True)]
    return pa.table(
        {
            "leaf": pa.array([trial.name] * len(changed), pa.string()),
            "trial_id": ids[0],
            "base_id": ids[1],
            "doc_digest": trial.documents["doc_digest"].take(pairing.trial[changed]),
            "change": pa.array(np.where(gain[changed] < 0, LOST, WON), pa.string()),
            "size": np.abs(gain[changed]),
            "trial_score": ours[changed],
            "base_score": theirs[changed],
        }
    )


def _texts(role: str, changed: pa.Table, inputs: Mapping[str, Path]) -> pa.Table:
    """The samples of those documents, in their order."""
    columns = [*_OF_BOTH, *(_OF_DOCUMENT if role == "base" else [])]
    leaves = pc.unique(changed["leaf"])
    keys = _keys(changed["leaf"], changed[f"{role}_id"], leaves)
    parts = [_some(inputs[name], name, columns, keys, leaves) for name in sorted(inputs) if name.startswith(f"{role}/")]
    table = pa.concat_tables(part for part in parts if part.num_rows)
    found = _keys(table["leaf"], table["doc_id"], leaves)
    order = np.argsort(found)
    return table.take(order[np.searchsorted(found, keys, sorter=order)])


def _some(directory: Path, name: str, columns: Sequence[str], keys: Indices, leaves: pa.Array) -> pa.Table:
    """Rows of one artifact: texts are read once, and only what is asked of them is kept."""
    table = read_samples(directory, list(columns), name)
    return table.filter(np.isin(_keys(table["leaf"], table["doc_id"], leaves), keys))


def _keys(leaf: pa.ChunkedArray, doc_id: pa.ChunkedArray, leaves: pa.Array) -> Indices:
    """A number for each document of each leaf; those of other leaves are negative."""
    places = pc.fill_null(pc.index_in(leaf, value_set=leaves), -1).to_numpy().astype(np.int64)
    return np.asarray(places * 2**32 + doc_id.to_numpy().astype(np.int64))


def _table(changed: pa.Table, sides: Mapping[str, pa.Table], metric: str) -> pa.Table:
    base = sides["base"]
    columns: dict[str, Any] = {name: changed[name] for name in ("leaf", "change", "base_score", "trial_score")}
    columns |= {"metric": pa.array([metric] * changed.num_rows, pa.string()), "doc_id": changed["base_id"]}
    columns |= {name: base[name] for name in ("question", "choices")}
    choices = base["choices"].to_pylist()
    columns["target"] = [_named(target, own) for target, own in zip(base["target"].to_pylist(), choices, strict=True)]
    for role, side in sides.items():
        said = list(_said(side, choices, metric))
        columns[f"{role}_answers"] = [answers for answers, _ in said]
        columns[f"{role}_extracted"] = [extracted for _, extracted in said]
    return pa.table({name: columns[name] for name in FLIPS_SCHEMA.names}, schema=FLIPS_SCHEMA)


def _said(
    side: pa.Table, choices: Sequence[Sequence[str] | None], metric: str
) -> Iterator[tuple[list[str], str | None]]:
    """Of each document the texts that were answered, and what the metric's filter made of them where that is another.

    Of choices it is the one that was thought the likeliest.
    """
    name, _, of_filter = metric.rpartition(",")
    columns = (side[column].to_pylist() for column in ("responses", "filtered", "loglikelihoods"))
    for (responses, filtered, worths), own in zip(zip(*columns, strict=True), choices, strict=True):
        if own and worths and len(own) == len(worths):
            yield [own[_best(worths, own, is_normalized=name == "acc_norm")]], None
            continue
        extracted = json.loads(filtered).get(of_filter) if filtered else None
        shown = extracted if isinstance(extracted, str) or extracted is None else json.dumps(extracted)
        yield list(responses or ()), None if [shown] == responses else shown


def _best(worths: Sequence[float], choices: Sequence[str], is_normalized: bool) -> int:
    """lm-eval's normalized accuracy goes by the log-likelihood of a character."""
    scaled = [worth / max(len(choice), 1) for worth, choice in zip(worths, choices, strict=True)]
    return int(np.argmax(scaled if is_normalized else worths))


def _named(target: str, choices: Sequence[str] | None) -> str:
    """A number of a choice as that choice."""
    is_number = choices and target.isdigit() and int(target) < len(choices)
    return choices[int(target)] if choices and is_number else target
