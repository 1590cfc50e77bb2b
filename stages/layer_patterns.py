"""Which layers a recipe means: names in full, the class ``Linear``, or regular expressions after ``re:``."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence

_PREFIX = "re:"
_HEAD = "lm_head"  # ignored unless a recipe says otherwise, and not stored where it is tied
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any of ``patterns`` means the linear layer ``name``, as llm-compressor reads them."""
    return any(
        re.match(pattern.removeprefix(_PREFIX), name) is not None
        if pattern.startswith(_PREFIX)
        else pattern in (name, "Linear")
        for pattern in patterns
    )


def check_patterns(field: str, patterns: Iterable[str]) -> None:
    """Raise ValueError for a regular expression that is none."""
    for pattern in patterns:
        expression = pattern.removeprefix(_PREFIX)
        if not expression:
            raise ValueError(f"{field}: {pattern!r} says nothing of a layer's name; 're:.*' means all of them")
        if pattern.startswith(_PREFIX):
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(
                    f"{field}: {pattern!r} is no regular expression: {error.msg}, character {(error.pos or 0) + 1} "
                    f"of {expression!r}; any text is written .*"
                ) from None


def check_matches(field: str, patterns: Iterable[str], layers: Collection[str]) -> None:
    """Raise ValueError, with what may have been meant, for a pattern that means none of ``layers``."""
    for pattern in patterns:
        if pattern != _HEAD and not any(matches(layer, [pattern]) for layer in layers):
            raise ValueError(f"{field}: {pattern!r} matches no layer; {_advice(pattern, list(layers))}")


def _advice(pattern: str, layers: Sequence[str]) -> str:
    text = pattern.removeprefix(_PREFIX)
    if any(f".{text}." in f".{layer}." for layer in layers):
        return f"names are matched whole, write 're:.*{text}'"
    if not pattern.startswith(_PREFIX) and _any_matches(text, layers):
        return f"a regular expression is marked as one, write 're:{text}'"
    if _any_matches(f".*{text}", layers):
        return f"a name is matched from its beginning, write 're:.*{text}'"
    if nearest := _nearest(text, layers):
        return f"the nearest name is {nearest!r}"
    return f"its layers are called {', '.join(map(repr, layers[:3]))} and so on"


def _any_matches(expression: str, layers: Sequence[str]) -> bool:
    try:
        return any(re.match(expression, layer) for layer in layers)
    except re.error:
        return False


def _nearest(text: str, layers: Sequence[str]) -> str | None:
    """The first layer whose name, or whose name's end of as many parts, is most like the letters of a pattern."""
    plain = re.sub(r"\\\.", ".", text).replace(".*", "").strip("^$.*")
    num_parts = plain.count(".") + 1
    ends: dict[str, str] = {}
    for layer in layers:
        ends.setdefault(layer, layer)
        ends.setdefault(".".join(_NUMBER.sub("0", layer).split(".")[-num_parts:]), layer)
    found = difflib.get_close_matches(plain, ends, n=1)
    return ends[found[0]] if found else None
