"""What is remembered is what was written, or nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.planning.remembered import cached
from pipeline.store.memory import recall, remember

VALUE = {"tasks": [1, 2.5, None], "name": "été"}


def test_what_was_written_is_recalled(tmp_path: Path) -> None:
    assert remember(tmp_path / "new" / "file", VALUE)
    assert recall(tmp_path / "new" / "file") == VALUE
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    (tmp_path / "a file").write_text("")
    assert not remember(tmp_path / "a file" / "file", VALUE)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_text('["x"]'),
        lambda path: path.write_text(path.read_text()[:-9]),
        lambda path: path.write_text(path.read_text().replace("2.5", "3.5")),
        lambda path: path.write_text(json.dumps(VALUE)),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.unlink(),
    ],
)
def test_anything_else_is_found_out_anew(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    asked: list[int] = []
    for _ in range(2):
        assert cached(tmp_path, ["key"], lambda: asked.append(1) or VALUE) == VALUE  # type: ignore[func-returns-value]
    assert len(asked) == 1
    [path] = tmp_path.iterdir()
    harm(path)
    assert recall(path) is None
    assert cached(tmp_path, ["key"], lambda: VALUE) == VALUE
