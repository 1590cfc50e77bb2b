"""A task's Python modules reduced to what its prompts can reach: nothing is run, and names are all that is looked at.

Whatever is imported, called or assigned when a module is loaded stays.  A function, a class or a plain constant goes
only where nothing that stays mentions its name, in whatever module; and nothing goes where code looks for names, files
or modules that it puts together.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.evaluate.task_effects import defined_names, is_docstring, may_go, texts_of

_MAX_DEPTH = 100
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@lru_cache(maxsize=1024)
def _tree(source: bytes) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def trees(files: Iterable[Path]) -> dict[Path, ast.Module]:
    """The syntax trees of those that Python can read."""
    found = {file: _tree(file.read_bytes()) for file in files}
    return {file: tree for file, tree in found.items() if tree is not None}


def is_deep(tree: ast.AST) -> bool:
    """Whether it nests so far that Python's own limit of recursion, which differs by caller, may come into it."""
    level, depth = [tree], 0
    while level and depth <= _MAX_DEPTH:
        level, depth = [child for node in level for child in ast.iter_child_nodes(node)], depth + 1
    return depth > _MAX_DEPTH


def reached(starts: Iterable[Path], known: Mapping[Path, ast.Module]) -> list[Path]:
    """The modules among ``known`` that those import, or name, under whatever package."""
    waiting, seen = list(starts), set()
    while waiting:
        if (file := waiting.pop()) in seen or file not in known:
            continue
        seen.add(file)
        named = {part for text in _imported_names(known[file]) for part in text.split(".")}
        waiting += [other for other in known if module_name(other) in named]
        waiting.append(file.parent / "__init__.py")
    return [file for file in known if file in seen]


def live(modules: Mapping[Path, ast.Module], names: Iterable[str]) -> dict[Path, list[ast.stmt]]:
    """The statements of each module that can matter to whoever calls the functions ``names``."""
    defined = {name for tree in modules.values() for node in tree.body for name in defined_names(node)}
    dropped = [node for tree in modules.values() for node in tree.body if may_go(node, defined)]
    kept = {id(node) for tree in modules.values() for node in tree.body} - {id(node) for node in dropped}
    mentioned = set(names)
    waiting = [node for tree in modules.values() for node in tree.body if id(node) in kept]
    is_begun = False
    while waiting or not is_begun:  # a module may do nothing but define
        is_begun = True
        mentioned |= {name for node in waiting for name in _mentions(node)}
        waiting = [node for node in dropped if id(node) not in kept and mentioned.intersection(defined_names(node))]
        kept |= {id(node) for node in waiting}
    return {file: [node for node in tree.body if id(node) in kept] for file, tree in modules.items()}


def without_imports(nodes: Iterable[ast.stmt]) -> list[ast.stmt]:
    """Nor docstrings: what a module still does when it is loaded by somebody who asks it nothing."""
    return [node for node in nodes if not (isinstance(node, ast.Import | ast.ImportFrom) or is_docstring(node))]


def texts_in(nodes: Iterable[ast.stmt]) -> list[str]:
    """The texts that code holds, but for its docstrings."""
    return [text for node in nodes for text in texts_of(node)]


def plain(node: Any) -> Any:
    """A syntax tree as data: without places, and without what is empty, which Pythons write differently."""
    if isinstance(node, ast.AST):
        parts = [[name, plain(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *parts]
    if isinstance(node, list):
        return [plain(item) for item in node]
    return node if isinstance(node, str) else [type(node).__name__, repr(node)]


def module_name(file: Path) -> str:
    """The last part of what a module is imported as."""
    return file.parent.name if file.stem == "__init__" else file.stem


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name for alias in node.names)
            yield getattr(node, "module", None) or ""
    yield from (text for text in texts_of(tree) if _DOTTED.fullmatch(text))


def _mentions(node: ast.AST) -> Iterator[str]:
    """Every name that code speaks of: variables, attributes, texts that could be names, what is imported not plainly.

    A plain import at the beginning of a module makes its names known; those that are used are spoken of again.
    """
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr
        elif isinstance(each, ast.alias) and (each.asname or not isinstance(node, ast.Import | ast.ImportFrom)):
            yield each.name.rpartition(".")[2]
        elif isinstance(each, ast.Global | ast.Nonlocal):
            yield from each.names
    for text in texts_of(node):
        if _DOTTED.fullmatch(text):
            yield from text.split(".")
        elif (annotation := _annotation(text)) is not None:
            yield from (each.id for each in ast.walk(annotation) if isinstance(each, ast.Name))


def _annotation(text: str) -> ast.AST | None:
    """What a text could be as a quoted type (``dict[str, Row]``)."""
    if "[" not in text and "|" not in text:
        return None
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return None
