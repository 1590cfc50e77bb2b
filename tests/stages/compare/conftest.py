"""Comparisons of scores that a test chooses."""

import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from stages.compare.config import CompareConfig
from stages.compare.stage import compare


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Compare; ``trial`` and ``base`` are {leaf: scores or a list of them}, those of ``again`` by trial_rerun/NUMBER
    and base_rerun/NUMBER.
    """

    def run(trial, base=None, again=None, **config):
        leaves = config.pop("leaves", list(trial))
        out = tmp_path_factory.mktemp("compare")
        inputs = {
            f"{role}/{leaf}/{index:04d}": shard
            for role, side in (("trial", trial), ("base", base or {}), *(again or {}).items())
            for leaf, shards in side.items()
            for index, shard in enumerate(shards if isinstance(shards, list) else [shards])
        }
        settings = {"task": "task"} | config
        metrics = compare(CompareConfig(leaves=leaves, **settings), inputs, out)
        rows = pq.read_table(out / "comparison.parquet").to_pylist()
        return SimpleNamespace(
            metrics=metrics,
            rows=rows,
            whole=next(row for row in rows if row["leaf"] is None and row["primary"]),
            document=json.loads((out / "comparison.json").read_text()),
            files={path.name: path.read_bytes() for path in out.iterdir()},
        )

    return run
