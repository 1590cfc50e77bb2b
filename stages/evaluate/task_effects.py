"""What a statement of a task's module does beyond defining names, and where code finds things otherwise than by name.

What is not known for certain to do nothing is taken to do something.
"""

import ast
import re
from collections.abc import Iterable, Iterator

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# What finds something by its name, and the argument that is the name.
_BY_NAME = {"import_module": 0, "__import__": 0, "attrgetter": 0, "methodcaller": 0}
_BY_NAME |= {"getattr": 1, "hasattr": 1, "setattr": 1, "delattr": 1}
_OPAQUE = {
    *(
        "builtins",
        "__builtins__",
        "__dict__",
        "__doc__",
        "__loader__",
        "__spec__",
        "inspect",
        "runpy",
        "pkgutil",
        "imp",
        "pydoc",
    ),
    *("find_spec", "reload", "modules", "spec_from_file_location", "SourceFileLoader"),
    *("pickle", "dill", "cloudpickle", "joblib", "marshal", "subprocess", "system", "popen"),
    *("glob", "rglob", "iglob", "iterdir", "listdir", "scandir", "walk"),
}
_OPAQUE_BUILTINS = {"exec", "eval", "compile", "globals", "locals", "vars", "dir"}
_OPAQUE_TEXTS = (".py", ".yaml", ".yml")  # names of files that are known by less than their bytes
_CONTAINERS = {"frozenset", "set", "tuple", "list", "dict"}
# Decorators that leave nothing behind which prompts could find; the last ones are lm-eval's, of metrics and filters.
_HARMLESS = {
    *("staticmethod", "classmethod", "property", "cache", "lru_cache", "functools.cache", "functools.lru_cache"),
    *("dataclass", "dataclasses.dataclass", "register_filter", "register_metric", "register_aggregation"),
}
_FOLDER_OF_FILE = re.compile(
    r"Path\(__file__\)(\.(resolve|absolute)\(\))?\.parents?\b|dirname\(((os\.path|path)\.)?((abspath|realpath)\()?__file__\)"
)


def is_opaque(nodes: Iterable[ast.stmt]) -> bool:
    """Whether code may find functions or files in ways that its names do not tell."""
    return any(_is_opaque(node) for node in nodes)


def names_code(text: str) -> bool:
    """Whether a text speaks of files that are known by less than their bytes."""
    return any(ending in text for ending in _OPAQUE_TEXTS)


def defined_names(node: ast.stmt) -> list[str]:
    """Of functions and classes, and what is assigned."""
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def may_go(node: ast.stmt, defined: set[str]) -> bool:
    """Whether a statement does no more than define names, none of which Python looks for by itself."""
    if any(name.startswith("__") for name in defined_names(node)):
        return False
    if isinstance(node, ast.ClassDef):
        return not _acts_as_class(node, defined)
    return not _acts(node, defined)


def _acts(node: ast.stmt, defined: set[str]) -> bool:
    if isinstance(node, _FUNCTIONS):
        arguments = node.args
        annotated = [each.annotation for each in ast.walk(arguments) if isinstance(each, ast.arg)]
        run = [*arguments.defaults, *arguments.kw_defaults, node.returns, *annotated]
        return _is_decorated(node.decorator_list, defined) or not all(map(_is_pure, run))
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        run = [node.value, getattr(node, "annotation", None)]
        return not (all(isinstance(each, ast.Name) for each in targets) and all(map(_is_pure, run)))
    return not (isinstance(node, ast.Pass) or is_docstring(node))


def _acts_as_class(node: ast.ClassDef, defined: set[str]) -> bool:
    bases = [ast.unparse(base) for base in node.bases]
    inherits = bool(node.keywords) or any(defined.intersection(base.split(".")) for base in bases)
    runs = not all(map(_is_pure, node.bases)) or any(_acts(each, defined) for each in node.body)
    return inherits or runs or _is_decorated(node.decorator_list, defined)


def _is_decorated(decorators: Iterable[ast.expr], defined: set[str]) -> bool:
    """Whether one of them may do more with a function than wrap it."""
    called = [each.func if isinstance(each, ast.Call) else each for each in decorators]
    names = [ast.unparse(each) for each in called]
    return any(name not in _HARMLESS or name in defined for name in names)


def _is_pure(value: ast.expr | None) -> bool:
    """Whether computing it changes nothing: a constant, names, containers of such, a pattern, a function."""
    if value is None or isinstance(value, ast.Constant | ast.Name):
        return True
    if isinstance(value, ast.Lambda):
        return all(map(_is_pure, [*value.args.defaults, *value.args.kw_defaults]))
    if isinstance(value, ast.Call):
        given = [*value.args, *(keyword.value for keyword in value.keywords)]
        return _is_pure_call(value) and all(map(_is_pure, given))
    if not isinstance(
        value, ast.Tuple | ast.List | ast.Set | ast.Dict | ast.UnaryOp | ast.BinOp | ast.Attribute | ast.Subscript
    ):
        return False
    return all(_is_pure(child) for child in ast.iter_child_nodes(value) if isinstance(child, ast.expr))


def _is_pure_call(call: ast.Call) -> bool:
    """A pattern, or a container of constants: a name may be of something that is used up."""
    function, given = ast.unparse(call.func), [*call.args, *call.keywords]
    uses_names = any(isinstance(each, ast.Name) for part in given for each in ast.walk(part))
    return function == "re.compile" or (function in _CONTAINERS and not uses_names)


def texts_of(node: ast.AST) -> Iterator[str]:
    """The texts that code holds, but for its docstrings."""
    docstrings = {id(each.value) for each in ast.walk(node) if isinstance(each, ast.Expr)}
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in docstrings:
            yield each.value


def is_docstring(node: ast.stmt) -> bool:
    """A constant that stands for itself."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_opaque(node: ast.AST) -> bool:
    by_constant = {id(each.func) for each in ast.walk(node) if isinstance(each, ast.Call) and _names_plainly(each)}
    if any(id(each) not in by_constant and _hides(each) for each in ast.walk(node)):
        return True
    if any(names_code(text) for text in texts_of(node)):
        return True
    return "__file__" in _FOLDER_OF_FILE.sub("", ast.unparse(node))


def _hides(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _OPAQUE | _OPAQUE_BUILTINS or node.id in _BY_NAME
    if isinstance(node, ast.Attribute):
        return node.attr in _OPAQUE or node.attr in _BY_NAME
    if isinstance(node, ast.alias):
        hidden = _OPAQUE | _OPAQUE_BUILTINS | _BY_NAME.keys() | {"importlib"}
        return node.asname is not None and bool(hidden.intersection(node.name.split(".")))
    return isinstance(node, ast.ImportFrom) and bool(set((node.module or "").split(".")) & _OPAQUE)


def _names_plainly(call: ast.Call) -> bool:
    """``getattr(module, "name")``: what is looked up by name, where the name stands there."""
    at = _BY_NAME.get(ast.unparse(call.func).rpartition(".")[2])
    if at is None or len(call.args) <= at or not isinstance(name := call.args[at], ast.Constant):
        return False
    return not (_OPAQUE | _OPAQUE_BUILTINS).intersection(str(name.value).split("."))
