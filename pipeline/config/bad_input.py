"""Turn what Hydra, OmegaConf and the file system say about bad input into one line that names the fix."""

import re
import traceback
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipeline.config.schema import Config
from pipeline.errors import UserError
from stages.errors import one_line

_NOISE = ("full_key:", "object_type=", "reference_type=")  # OmegaConf's, after its message
RENAMED = {"allow_drift": "allow_changed_environment"}  # keys of earlier versions
_TOP_LEVEL = {"defaults", "hydra", *(each.name for each in fields(Config))}
_FREE_TEXT = {"system_instruction", "note", "price_source"}  # what may be said in no words
_GLOBAL = "# @package _global_"  # or Hydra takes what a file holds for keys of the file's group


def check_nothing_is_blank(config: Config) -> None:
    """Raise UserError for an empty name or path, which would stand for another thing: that of ``.``, or a default."""
    if key := next(_blank_keys(config, ""), None):
        raise UserError(f"{key} is empty (an unset variable?): give it a value, or leave it out")


def _blank_keys(value: Any, key: str) -> Iterator[str]:
    if is_dataclass(value):
        for each in fields(value):
            if each.name not in _FREE_TEXT:
                yield from _blank_keys(getattr(value, each.name), f"{key}.{each.name}" if key else each.name)
    elif isinstance(value, str) and not value.strip():
        yield key
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _blank_keys(item, f"{key}[{index}]")
    elif isinstance(value, dict):  # of its own words only sections: what stands in others is said to a library
        for name, item in value.items():
            yield from _blank_keys(item, f"{key}.{name}") if is_dataclass(item) else ()


def describe(error: BaseException) -> str | None:
    """One line for a config error or a file that cannot be what it is; None for an error that is not the user's."""
    if option := _misread_option(error):
        return option
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _line(_innermost(error))
    if isinstance(error, (IsADirectoryError, NotADirectoryError, PermissionError)) and error.filename:
        return f"{error.filename} cannot be used ({error.strerror}): make it what it was, or move it out of the way"
    if isinstance(error, YAMLError):
        return f"a config file is not YAML: {' '.join(str(error).split())}"
    if isinstance(error, UnicodeDecodeError):
        return f"a config file{_file_read(error)} is no text in UTF-8 ({error.reason}): write it as such, or remove it"
    if _raised_by_storage(error):
        why = one_line(error, limit=200)
        return f"store.root cannot be reached ({why}): check the bucket's name, the credentials and the endpoint"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, (AttributeError, ValueError, TypeError)) and _raised_by_schema(error):
        return _line(error)
    return None


def _misread_option(error: BaseException) -> str | None:
    """Of a file whose defaults name an option without quotes that YAML takes for another thing, such as off."""
    if "Unsupported item value in defaults" not in str(error):
        return None
    frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
    seen = {name: value for names in frames for name, value in names.items()}
    group = getattr(seen.get("keywords"), "group", "") or "a group"
    return (
        f"{seen.get('config_path', 'a config file')}: YAML reads the option of {group} in its defaults as "
        f'{seen.get("config_value")!r}; write its name in quotes, as in - override /tracking: "off"'
    )


def _line(error: BaseException) -> str:
    text = str(error)
    if unknown := re.search(r"'(\w+)' object has no attribute '(\w+)'", text):
        return _unknown_key(unknown[2], f" in {unknown[1]}: check its spelling against conf/")
    if odd := re.search(r"Config group override must be a string or a list. Got (\w+)", text):
        return (
            f"a group (model=, sweep=, an axis over one) takes the names of files; got {odd[1]}: a name that looks "
            "like one is quoted, model='\"405\"'"
        )
    if "@sweep." in text and "Could not override" in text:
        return f"a sweep's file must begin with {_GLOBAL!r}"
    if "Could not override 'sweep'" in text:
        return "a sweep is chosen with +sweep=NAME"
    if unnamed := re.search(r"mandatory value.*full_key: tasks\.(\w+)\.task\b", text, re.DOTALL):
        return (
            f"tasks.{unnamed[1]} has settings but names no task: another suite= leaves what the sweep itself sets "
            f"under tasks; use a sweep without it, or say tasks.{unnamed[1]}.task=NAME"
        )
    if strange := re.search(r"In '(\w+)/([^']+)'.*Key '(\w+)' not in '(\w+)'", text, re.DOTALL):
        group, name, key = strange[1], strange[2], strange[3]
        if key in RENAMED:
            return f"{group}/{name}.yaml: {_unknown_key(key)}"
        if group == "sweep" and key in _TOP_LEVEL:
            return f"sweep/{name}.yaml: key {key!r} is out of place: the file must begin with {_GLOBAL!r}"
        return f"{group}/{name}.yaml: unknown key {key!r}: check its spelling against conf/{group}/"
    if missing := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(missing[1], ": check its spelling against conf/ (python -m pipeline --cfg job)")
    if option := re.search(r"(?:Could not find|Could not load) '([^']+)'", text):
        return f"unknown option {option[1]!r}{_available(text)}; files of your own need --config-dir=DIR"
    key = re.search(r"full_key: (\S+)", text)
    lines = [part.strip() for part in text.splitlines() if part.strip() and not part.strip().startswith(_NOISE)]
    said = " ".join(line.partition("See https://")[0].strip() for line in lines)
    if key and (unknown := re.search(r"Interpolation key '([^']+)' not found", said)):
        return (
            f"{key[1]}: ${{{unknown[1]}}} stands for a key that there is not; as plain text it is \\${{{unknown[1]}}}"
        )
    if key and "is not a ListConfig, list or tuple" in said:
        return f"{key[1]} takes a list: {key[1]}=[...]"
    if key and "dict is not a subclass of" in said:
        return f"{key[1]}: a command line adds no entry with settings; put it into a sweep's file, --config-dir=DIR"
    return f"{f'{key[1]}: ' if key else ''}{said}"


def _unknown_key(key: str, advice: str = "") -> str:
    return f"{key} is called {RENAMED[key]} now" if key in RENAMED else f"unknown key {key!r}{advice}"


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
    """Whether the error came up while OmegaConf filled the config dataclasses, or in Hydra itself."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("omegaconf" in frame.filename for frame in frames) or "hydra" in Path(frames[-1].filename).parts


def _raised_by_storage(error: BaseException) -> bool:
    """Whether the error came up on the way to object storage, whose clients have a dozen kinds for it."""
    frames = traceback.extract_tb(error.__traceback__)
    return any({"fsspec", "s3fs"} & set(Path(frame.filename).parts) for frame in frames)


def _file_read(error: BaseException) -> str:
    """The file that Hydra was reading, which an error about its bytes does not name."""
    frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
    return next((f", {names['full_path']}," for names in frames if "full_path" in names), "")
