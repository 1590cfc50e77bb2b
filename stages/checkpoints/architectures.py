"""Which models transformers has a class for, read from its source: a plan must not wait for its import."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
_WITH_IMAGES = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"


def class_of(model_type: str) -> str | None:
    """The class that writes text for a ``model_type`` of config.json; None where transformers has none."""
    tables = _tables()
    return next((name for table in tables.values() if (name := table.get(model_type))), None)


def is_listed() -> bool:
    """Whether the installed transformers says what it has."""
    return bool(_tables())


@cache
def _tables() -> dict[str, dict[str, str]]:
    """Class names by model type: of causal language models first."""
    spec = find_spec("transformers")
    for folder in (spec and spec.submodule_search_locations) or ():
        source = Path(folder) / "models" / "auto" / "modeling_auto.py"
        if source.is_file():
            found = dict(filter(None, map(_table, ast.parse(source.read_text(encoding="utf-8")).body)))
            return {name: found[name] for name in (_CAUSAL, _WITH_IMAGES) if name in found}
    return {}


def _table(statement: ast.stmt) -> tuple[str, dict[str, str]] | None:
    """``NAME = OrderedDict([(key, value), ...])`` as a name and a dictionary."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
        return None
    name, value = statement.targets[0].id, statement.value
    if name not in (_CAUSAL, _WITH_IMAGES) or not isinstance(value, ast.Call) or not value.args:
        return None
    return name, dict(ast.literal_eval(value.args[0]))
