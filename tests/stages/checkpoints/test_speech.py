"""A checkpoint and its base are asked alike, or not at all."""

import json
from pathlib import Path

import pytest

from stages.checkpoints.chat import stored_template
from stages.checkpoints.speech import check_speaks_alike, take_template
from stages.errors import CheckpointError

VOCABULARY = {"a": 0, "b": 1, "ab": 2}


def speaker(directory: Path, vocabulary: dict[str, int], merges: list[object], template: str | None = None) -> Path:
    directory.mkdir()
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": merges}, "added_tokens": []}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {} if template is None else {"chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_one_tokenizer_in_two_spellings_is_one(tmp_path: Path) -> None:
    base = speaker(tmp_path / "base", VOCABULARY, ["a b"])
    check_speaks_alike(speaker(tmp_path / "own", VOCABULARY | {"<pad>": 3}, [["a", "b"]]), base)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ({"b": 0, "a": 1, "ab": 2}, ["a b"], "its token 0 is 'b' and the base's 'a'"),
        (VOCABULARY, [], "joins letters otherwise than the base's"),
    ],
)
def test_another_tokenizer_is_refused(
    tmp_path: Path, vocabulary: dict[str, int], merges: list[object], message: str
) -> None:
    base = speaker(tmp_path / "base", VOCABULARY, ["a b"])
    with pytest.raises(CheckpointError, match=message):
        check_speaks_alike(speaker(tmp_path / "own", vocabulary, merges), base)


@pytest.mark.parametrize("own", ["another", None])
def test_a_chat_is_spelt_as_to_the_base(tmp_path: Path, own: str | None) -> None:
    base = speaker(tmp_path / "base", VOCABULARY, [], "the base's")
    other = speaker(tmp_path / "own", VOCABULARY, [], own)
    assert take_template(other, base)
    assert stored_template(other) == "the base's"
    assert not take_template(other, base)
