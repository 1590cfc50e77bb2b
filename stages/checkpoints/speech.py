"""Whether two checkpoints are asked alike: the same text is the same tokens to both, and a chat the same text."""

import json
from pathlib import Path
from typing import Any

from stages.checkpoints.chat import stored_template
from stages.errors import CheckpointError

_TOKENIZER, _TEMPLATE = "tokenizer.json", "chat_template.jinja"


def check_speaks_alike(checkpoint_dir: Path, base_dir: Path) -> None:
    """Raise CheckpointError where a token means something else to the checkpoint than to its base.

    Only of tokenizers that are stored as ``tokenizer.json``; tokens that one of them has beside the other's may be.
    """
    own, wanted = (_tokens(directory) for directory in (checkpoint_dir, base_dir))
    common = own.keys() & wanted.keys()
    if other := sorted(number for number in common if own[number] != wanted[number]):
        raise CheckpointError(
            f"{checkpoint_dir}: its token {other[0]} is {own[other[0]]!r} and the base's {wanted[other[0]]!r}: they "
            "would be asked different things; name the model that it was made from"
        )
    if common and _merges(checkpoint_dir) != _merges(base_dir):
        raise CheckpointError(
            f"{checkpoint_dir}: its tokenizer joins letters otherwise than the base's: they would be asked different "
            "things; name the model that it was made from"
        )


def take_template(checkpoint_dir: Path, base_dir: Path) -> bool:
    """Give the checkpoint its base's chat template; whether its own was another: answers to two are not comparable."""
    own, wanted = stored_template(checkpoint_dir), stored_template(base_dir)
    if wanted is None or own == wanted:
        return False
    (checkpoint_dir / _TEMPLATE).write_text(wanted, encoding="utf-8")
    return True


def _tokens(directory: Path) -> dict[int, str]:
    """By their numbers; of several texts with one number the last."""
    described = _described(directory)
    vocabulary = described.get("model", {}).get("vocab", {})
    known = (
        dict(enumerate(piece[0] for piece in vocabulary)) if isinstance(vocabulary, list) else _by_number(vocabulary)
    )
    return known | {token["id"]: token["content"] for token in described.get("added_tokens", [])}


def _by_number(vocabulary: dict[str, int]) -> dict[int, str]:
    return {number: text for text, number in vocabulary.items()}


def _merges(directory: Path) -> list[str] | None:
    """In one spelling: files hold them as pairs, or as texts."""
    merges = _described(directory).get("model", {}).get("merges")
    return None if merges is None else [each if isinstance(each, str) else " ".join(each) for each in merges]


def _described(directory: Path) -> dict[str, Any]:
    file = directory / _TOKENIZER
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
