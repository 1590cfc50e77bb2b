"""Settings that something else reads: a text that spells true or false is true to it, whatever it says."""

from collections.abc import Iterator, Mapping
from typing import Any


def check_truths(place: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for such a text, however deep."""
    for name, text in _texts(place, given):
        if text.strip().lower() in ("true", "false"):
            plain = text.strip().lower()
            raise ValueError(f"{name} is the text {text!r}, which counts as true: write {plain} without quotes")


def _texts(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _texts(f"{place}.{name}", each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(place, each)
