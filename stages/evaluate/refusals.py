"""Why a task cannot be evaluated here, as far as its settings and its code say before any data is read."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from stages.errors import one_line
from stages.evaluate.task_code import class_constant, function_refs, imports, modules, outside_functions, parsed
from stages.evaluate.task_index import FunctionRef

_OUTPUT_TYPES = ("loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until")
NAMELESS = "is aggregated by a function that cannot be found by name; use another task"
_UNFIT = (ImportError, AssertionError, metadata.PackageNotFoundError)


def refusal(name: str, config: Mapping[str, Any], roots: Sequence[Path]) -> str | None:
    """One line, or None where nothing speaks against it."""
    return refused_kind(name, config) or _unfit_code(name, config, roots) or _lost_aggregation(config, roots)


def refused_kind(name: str, config: Mapping[str, Any]) -> str | None:
    """What no checkpoint is asked here, whatever is installed."""
    setting = _settings(config)
    if setting["unsafe_code"]:
        return f"task {name} runs code that the model wrote; that needs a sandbox, which is not here yet"
    if setting["multimodal"]:
        return f"task {name} shows images or plays sound; only text is supported"
    if setting["output_type"] not in (None, *_OUTPUT_TYPES):
        return f"task {name} asks for {setting['output_type']}; what can be asked: {', '.join(_OUTPUT_TYPES)}"
    return None


def unfit_environment(name: str, error: BaseException) -> str | None:
    """The line for an error of importing a task's code that a package is to blame for; None for any other."""
    chain = list(_chain(error))
    if not isinstance(error, _UNFIT) and not any(isinstance(each, metadata.PackageNotFoundError) for each in chain):
        return None
    file = _raised_in(error)
    begin = f"task {name} cannot be scored in this environment: its module {file.name} needs"
    for each in chain:
        missing = each.name if isinstance(each, ModuleNotFoundError | metadata.PackageNotFoundError) else None
        if missing and not _is_there(missing):
            return f"{begin} the package {missing}, which is not installed; leave the task out, or evaluate another"
    for package in _asked_versions(file):
        with suppress(metadata.PackageNotFoundError):
            than = f"{metadata.version(package)}, {_why_installed(package)}"
            return f"{begin} another version of {package} than {than}; leave the task out, or evaluate another"
    if isinstance(error, ImportError) and error.name:
        other = f"another version of {error.name.partition('.')[0]}: {one_line(error, 160)}"
        return f"{begin} {other}; leave the task out, or evaluate another"
    return None


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    reference = config.get("class")
    if isinstance(reference, FunctionRef):
        names = {"unsafe_code": "UNSAFE_CODE", "multimodal": "MULTIMODAL", "output_type": "OUTPUT_TYPE"}
        return {setting: class_constant(reference, name) for setting, name in names.items()}
    return {
        "unsafe_code": config.get("unsafe_code"),
        "multimodal": config.get("doc_to_image") is not None or config.get("doc_to_audio") is not None,
        "output_type": config.get("output_type"),
    }


def _unfit_code(name: str, config: Mapping[str, Any], roots: Sequence[Path]) -> str | None:
    """Modules that check what is installed, or lack something, are imported to see; all others are only read."""
    references = list(function_refs(config))
    if (lost := next((each for each in references if not _is_defined(each)), None)) is not None:
        return f"task {name} names the function {lost.spec}, which is not beside its YAML in {lost.folder}"
    for file in modules(references, roots):
        error = _import_error(file)
        if error is not None and (line := unfit_environment(name, error)) is not None:
            return line
    for reference in references:
        if missing := _missing_when_called(reference, roots):
            return (
                f"task {name} cannot be scored in this environment: {reference.spec} needs the package {missing}, "
                "which is not installed; leave the task out, or evaluate another"
            )
    return None


def _lost_aggregation(config: Mapping[str, Any], roots: Sequence[Path]) -> str | None:
    """One that a comparison could not find again: it has no name, or lies outside of every folder of tasks."""
    if isinstance(reference := config.get("class"), FunctionRef):
        return _nameless_aggregation(reference)
    for item in config.get("metric_list") or []:
        function = item.get("aggregation") if isinstance(item, Mapping) else None
        if not isinstance(function, FunctionRef) or not function.file.is_file():
            continue
        if any(_is_nameless(value) for value in _assigned(function)):
            return f"metric {_name(item['metric'])} {NAMELESS}"
        if not any(function.file.resolve().is_relative_to(root.resolve()) for root in roots):
            return (
                f"metric {_name(item['metric'])} is aggregated by a function of {function.file}, outside of the "
                "folders of tasks: move it into one of them"
            )
    return None


def _nameless_aggregation(reference: FunctionRef) -> str | None:
    """Of a task that is a Python class: the first that its own table of them makes without a name."""
    own = [
        node for node in parsed(reference.file).body if isinstance(node, ast.ClassDef) and node.name == reference.name
    ]
    methods = [node for each in own for node in each.body if isinstance(node, ast.FunctionDef)]
    for method in (node for node in methods if node.name == "aggregation"):
        for table in (node for node in ast.walk(method) if isinstance(node, ast.Dict)):
            for key, value in zip(table.keys, table.values, strict=True):
                if isinstance(key, ast.Constant) and _is_nameless(value):
                    return f"metric {key.value!s} {NAMELESS}"
    return None


def _assigned(function: FunctionRef) -> list[ast.expr]:
    """What a module sets the name of a function to, where it does not define it."""
    assignments = [node for node in parsed(function.file).body if isinstance(node, ast.Assign)]
    return [
        node.value
        for node in assignments
        if any(isinstance(target, ast.Name) and target.id == function.name for target in node.targets)
    ]


def _is_nameless(value: ast.expr) -> bool:
    is_partial = isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "partial"
    return is_partial or isinstance(value, ast.Lambda)


def _name(metric: Any) -> str:
    return metric.name if isinstance(metric, FunctionRef) else str(metric)


def _is_defined(reference: FunctionRef) -> bool:
    """A function of a file that is there, or of an importable module."""
    module = reference.spec.rpartition(".")[0]
    return bool(module) and (reference.file.is_file() or _is_there(module))


@cache
def _import_error(file: Path) -> Exception | None:
    """What else goes wrong than what is missing depends on where it runs, and is said there."""
    if _may_not_import(file):
        try:
            _import(file)
        except Exception as error:
            return error
    return None


def _may_not_import(file: Path) -> bool:
    return any(
        isinstance(node, ast.Raise | ast.Assert)
        or (isinstance(node, ast.Import | ast.ImportFrom) and any(_missing(node)))
        for node in outside_functions(parsed(file))
    )


def _missing(node: ast.AST) -> Iterator[str]:
    """Packages that a statement imports and that are not there."""
    for each in imports(node):
        if each.level == 0 and not _is_there(top := each.module.partition(".")[0]):
            yield top


def _is_there(module: str) -> bool:
    top = module.partition(".")[0]
    if top in sys.modules:
        return True
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _import(file: Path) -> None:
    """As lm-eval does, which knows the modules of its own tasks by their package."""
    inside = str(file).rpartition("/lm_eval/tasks/")[2].removesuffix(".py").replace("/", ".")
    name = f"lm_eval.tasks.{inside}" if "/lm_eval/tasks/" in str(file) else str(file.with_suffix(""))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _missing_when_called(reference: FunctionRef, roots: Sequence[Path]) -> str | None:
    """What the function, and those of its module that it calls, import when they are called, outside of any try."""
    defined = {node.name: node for node in parsed(reference.file).body if isinstance(node, ast.FunctionDef)}
    waiting, seen = [reference.name], set()
    while waiting:
        if (name := waiting.pop()) in seen or name not in defined:
            continue
        seen.add(name)
        for node in _without_tries(defined[name]):
            if isinstance(node, ast.Name):
                waiting.append(node.id)
            if isinstance(node, ast.Import | ast.ImportFrom):
                for missing in _missing(node):
                    if not any((place / f"{missing}.py").is_file() or (place / missing).is_dir() for place in roots):
                        return missing
    return None


def _without_tries(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Try):
            yield child
            yield from _without_tries(child)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _raised_in(error: BaseException) -> Path:
    """The last file of a task, or else of any code, on the way to the error."""
    trace, files = error.__traceback__, [Path("its code")]
    while trace is not None:
        files.append(Path(trace.tb_frame.f_code.co_filename))
        trace = trace.tb_next
    return next((file for file in reversed(files) if file.is_file() and "importlib" not in file.parts), files[0])


def _asked_versions(file: Path) -> list[str]:
    """Packages whose version the module looks at when it is imported."""
    calls = [node for node in outside_functions(parsed(file)) if isinstance(node, ast.Call)]
    names = [ast.unparse(call.func).rpartition(".")[2] for call in calls]
    arguments = [call.args[0] for call, name in zip(calls, names, strict=True) if name == "version" and call.args]
    return [str(each.value) for each in arguments if isinstance(each, ast.Constant)]


def _why_installed(package: str) -> str:
    """Who holds it where it is."""
    wanted = re.compile(rf"{re.escape(package)}\s*\(?([=<~][^;)]*)", re.IGNORECASE)
    for distribution in metadata.distributions():
        for requirement in distribution.requires or ():
            if (pin := wanted.match(requirement)) and "extra" not in requirement:
                return f"which {distribution.metadata['Name']} needs ({package}{pin[1].strip()})"
    return "which is installed"
