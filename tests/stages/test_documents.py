"""Documents and tables of artifacts: read as they were written, and one line for what cannot be."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from stages.documents import read_json, read_table, typed, write_json, write_table
from stages.errors import ConfigError, DataError, one_line


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    number: float | None
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    name: str
    parts: dict[str, Part | None]
    anything: Any = None
    added_later: int = 7


def test_a_document_is_read_as_what_it_is():
    found = typed(Whole, {"name": "a", "parts": {"x": {"number": 1, "words": ["b"]}, "y": None}, "anything": [{}]})
    assert found == Whole(name="a", parts={"x": Part(number=1, words=["b"]), "y": None}, anything=[{}])


def test_what_an_older_version_did_not_write_has_its_default_and_what_a_newer_one_adds_is_left_out():
    assert typed(Whole, {"name": "a", "parts": {}, "of_tomorrow": 1}).added_later == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "is not of type dict"),
        ('{"parts": {}}', "KeyError: 'name'"),
        ('{"name": 1, "parts": {}}', "1 is not of type str"),
        ('{"name": "a", "parts": {"x": {"number": "1"}}}', "'1' is not of type float"),
    ],
)
def test_a_damaged_document_is_one_line_that_names_it_and_the_fix(tmp_path, text, says):
    (tmp_path / "whole.json").write_text(text)
    with pytest.raises(
        DataError, match=rf"^{tmp_path.name}: whole.json cannot be read.*delete it and run again$"
    ) as why:
        read_json(tmp_path / "whole.json", Whole)
    assert says in str(why.value) and "\n" not in str(why.value)
    with pytest.raises(DataError, match=r"^trial/t/0: whole.json cannot be read"):
        read_json(tmp_path / "whole.json", Whole, "trial/t/0")


def test_a_number_that_json_has_no_word_for_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "whole.json", float("nan"))
    assert not (tmp_path / "whole.json").exists()


def test_a_damaged_table_is_one_line_that_names_it_and_the_fix(tmp_path):
    path = tmp_path / "rows.parquet"
    write_table(path, pa.table({"a": [1, 2]}))
    assert read_table(path, ["a"])["a"].to_pylist() == [1, 2]
    with pytest.raises(DataError, match=r"rows.parquet cannot be read \(it lacks b\); delete it and run again"):
        read_table(path, ["a", "b"])
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"rows.parquet cannot be read.*; delete it and run again") as why:
        read_table(path)
    assert "\n" not in str(why.value)


def test_an_error_is_one_line():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(ConfigError("choose another")) == "choose another"
    assert one_line("x" * 20, 10) == "x" * 9 + "…"
    assert one_line("x" * 20, 10, cut="") == "x" * 10
