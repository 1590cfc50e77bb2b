"""The Python modules of a task, read and not run: which files they are, and what they import and name."""

import ast
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.evaluate.installed import is_installed
from stages.evaluate.task_index import FunctionRef

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True, slots=True)
class Import:
    """What one statement imports, ``level`` folders up (0: absolute)."""

    module: str
    names: tuple[str, ...]
    level: int


def function_refs(value: Any) -> Iterator[FunctionRef]:
    """Every function that settings name."""
    if isinstance(value, FunctionRef):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from function_refs(part)


def modules(references: Iterable[FunctionRef], roots: Sequence[Path]) -> list[Path]:
    """The files of the functions and of all that these import, but for what is installed as a package."""
    waiting = [file for reference in references for file in _files_of(reference, roots)]
    seen: dict[Path, None] = {}
    while waiting:
        file = waiting.pop()
        if file not in seen and (not is_installed(file) or any(file.is_relative_to(root) for root in roots)):
            seen[file] = None
            waiting += [found for each in imports(parsed(file)) for found in _imported(each, file, roots)]
    return list(seen)


@lru_cache(maxsize=4096)
def parsed(file: Path) -> ast.Module:
    """Its syntax tree; empty for a file that Python cannot read, which loading it will say better."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return ast.Module([], [])


def imports(tree: ast.AST) -> list[Import]:
    """All of them, wherever they stand."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, (), 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(Import(node.module or "", tuple(alias.name for alias in node.names), node.level))
    return found


def texts(file: Path) -> list[str]:
    """The texts that a module's code holds."""
    nodes = ast.walk(parsed(file))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if not isinstance(node, _FUNCTIONS):
            yield node
            yield from outside_functions(node)


def class_constant(reference: FunctionRef, name: str) -> Any:
    """What a task that is a Python class sets ``name`` to; None where it does not say so plainly."""
    for node in ast.walk(parsed(reference.file)):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)):
            continue
        if any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
            return node.value.value
    return None


def _files_of(reference: FunctionRef, roots: Sequence[Path]) -> list[Path]:
    if reference.file.is_file():
        return [Path(os.path.normpath(reference.file))]
    module = Import(reference.spec.rpartition(".")[0], (), 0)
    return _imported(module, reference.file, roots)


def _imported(what: Import, file: Path, roots: Sequence[Path]) -> list[Path]:
    parts = [part for part in what.module.split(".") if part]
    if what.level:
        return _along(file.parents[what.level - 1], parts, what.names)
    if parts[0] in sys.stdlib_module_names:
        return []
    places = (file.parent, *roots, *map(Path, sys.path))
    return next((found for place in places if (found := _along(place, parts, what.names))), [])


def _along(place: Path, parts: Sequence[str], names: Sequence[str]) -> list[Path]:
    """The files that Python reads on the way from a folder to a module, and to modules that are named in it."""
    files: list[Path] = []
    for part in parts:
        place = place / part
        files += _module_at(place)
    return [*files, *(file for name in names for file in _module_at(place / name))]


def _module_at(place: Path) -> list[Path]:
    candidates = (place / "__init__.py", Path(f"{place}.py"))
    return [Path(os.path.normpath(file)) for file in candidates if file.is_file()][:1]
