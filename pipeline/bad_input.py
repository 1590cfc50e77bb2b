"""Turn what Hydra and OmegaConf say about bad input into one line that names the fix."""

import re
import traceback

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

_NOISE = ("full_key:", "object_type=", "reference_type=")  # OmegaConf's, after its message


def describe(error: BaseException) -> str | None:
    """One line for a config error; None for an error that is not the user's."""
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _line(_innermost(error))
    if isinstance(error, YAMLError):
        return f"a config file is not YAML: {' '.join(str(error).split())}"
    if isinstance(error, (AttributeError, ValueError, TypeError)) and _raised_by_schema(error):
        return _line(error)
    return None


def _line(error: BaseException) -> str:
    text = str(error)
    if unknown := re.search(r"'(\w+)' object has no attribute '(\w+)'", text):
        return f"unknown key {unknown[2]!r} in {unknown[1]}: check its spelling against conf/"
    if "Could not override 'sweep'" in text:
        return "a sweep is chosen with +sweep=NAME"
    if unnamed := re.search(r"mandatory value.*full_key: tasks\.(\w+)\.task\b", text, re.DOTALL):
        return (
            f"tasks.{unnamed[1]} has settings but names no task: another suite= leaves what the sweep itself sets "
            f"under tasks; use a sweep without it, or say tasks.{unnamed[1]}.task=NAME"
        )
    if missing := re.search(r"Could not override '([^']+)'", text):
        return f"unknown key {missing[1]!r}: check its spelling against conf/ (python -m pipeline --cfg job)"
    if option := re.search(r"(?:Could not find|Could not load) '([^']+)'", text):
        return f"unknown option {option[1]!r}{_available(text)}; files of your own need --config-dir=DIR"
    key = re.search(r"full_key: (\S+)", text)
    lines = [part.strip() for part in text.splitlines() if part.strip() and not part.strip().startswith(_NOISE)]
    return f"{f'{key[1]}: ' if key else ''}{' '.join(lines)}"


def _available(text: str) -> str:
    _, _, listed = text.partition("Available options in")
    options = [line.strip() for line in listed.splitlines()[1:] if line.strip() and ":" not in line]
    shown = [option for option in options if not option.endswith("_schema")]
    return f"; there are: {', '.join(shown)}" if shown else ""


def _innermost(error: BaseException) -> BaseException:
    """The cause that names the mistake, under the layers that only say where it surfaced."""
    while error.__cause__ is not None and not str(error).startswith("Could not"):
        error = error.__cause__
    return error


def _raised_by_schema(error: BaseException) -> bool:
    """Whether the error came up while OmegaConf filled the config dataclasses."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("omegaconf" in frame.filename for frame in frames)
