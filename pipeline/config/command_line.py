"""The command line: options, and overrides in Hydra's grammar, each refused in one line that shows how to write it."""

import argparse
import functools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from pipeline.errors import UserError

# Hydra's options that show something in place of a run.
_COMPLETION = "--shell-completion"
_SHOWING: dict[str, dict[str, Any]] = {
    "--cfg": {"choices": ["job", "hydra", "all"]},
    "--package": {},
    "--info": {"nargs": "?", "const": "all"},
    "--resolve": {"action": "store_const", "const": ""},
    "--hydra-help": {"action": "store_const", "const": ""},
    _COMPLETION: {"action": "store_const", "const": ""},
}
_SHORT = {"--cfg": "-c", "--package": "-p", "--info": "-i", _COMPLETION: "-sc"}


_OPEN = re.compile(r"tasks\.[^.=@~+]+\.[^=]+=|engine\.vllm_args[.=]")


@dataclass(frozen=True, slots=True)
class Command:
    """What was asked: ``overrides`` over the configs of this project and of ``config_dir``.

    ``shown``: options of Hydra's that show a config or a help page in place of a run.
    """

    overrides: list[str]
    config_dir: Path | None = None
    shown: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> Command:
    """A command line, read; raises UserError for an unknown option and for an override that cannot be read."""
    found = vars(_parser().parse_intermixed_args(list(arguments)))
    shown = {name: value for name in _SHOWING if (value := found[name]) is not None}
    if _COMPLETION not in shown:  # which asks about half a line
        check(found["overrides"])
    words = (word for option in shown.items() for word in option if word)
    return Command([reaching_in(text) for text in found["overrides"]], _directory(found["--config-dir"]), tuple(words))


def config_dir(arguments: Sequence[str]) -> Path | None:
    """The directory of the user's own configs, whatever else is asked; raises UserError for one that is not there."""
    return _directory(vars(_parser().parse_known_args(list(arguments))[0])["--config-dir"])


def reaching_in(text: str) -> str:
    """A setting of a task slot, or an argument of vLLM's, that is not there yet; what nobody knows is refused later."""
    return f"++{text}" if _OPEN.match(text) else text


def check(overrides: Sequence[str]) -> None:
    """Raise UserError for the first override that cannot be read, or that is about Hydra itself."""
    for text in overrides:
        override = _parsed(text)
        if override is None or not _is_readable(text):
            raise UserError(_advice(text))
        if is_about_hydra(override.key_or_group, override.package):
            raise UserError(f"{text!r} is about Hydra itself, which only composes configs here: leave it out")


def text_of(override: str) -> str:
    """The value of an override that sets a text; raises UserError for one that cannot be read."""
    return str(value_of(override))


def value_of(override: str) -> Any:
    """The value of an override; raises UserError for one that cannot be read."""
    check([override])
    return _grammar().parse_override(override).value()


def key_of(override: str) -> str:
    """What an override sets, or chooses."""
    return override.partition("=")[0].lstrip("+~")


def is_about_hydra(key_or_group: str, package: str | None) -> bool:
    """Whether an override, or an entry of a defaults list, reaches into Hydra's own settings."""
    return re.split(r"[./]", key_or_group.lstrip("/"))[0] == "hydra" or "hydra" in (package or "").split(".")


def quoted(value: str) -> str:
    """A text as Hydra's grammar reads it back, whatever is in it."""
    # Of backslashes only those before a quote, or at the end, have a meaning.
    return '"' + re.sub(r'(\\*)("|$)', lambda end: end[1] * 2 + end[2].replace('"', '\\"'), value) + '"'


def as_text(value: str) -> str:
    """A text as an override has it: in quotes where Hydra would take it for another thing, a number for instance."""
    read = _parsed(f"key={value}")
    is_itself = read is not None and not read.is_sweep_override() and read.value() == value
    return value if is_itself else quoted(value)


def shown(key: str, value: str) -> str:
    """``key=value`` as a shell's command line has it."""
    return shlex.quote(f"{key}={_item(value)}")


def _advice(text: str) -> str:
    key, equals, value = text.partition("=")
    forms = [form for form in _forms(value) if _is_readable(f"{key}={form}")] or [quoted(value)]
    readable = [shlex.quote(f"{key}={form}") for form in forms]
    if not equals or not _is_readable(f"{key}=x"):
        return f"{text!r} is no KEY=VALUE; a sweep is chosen with +sweep=NAME"
    return f"{text!r}: some of its characters have a meaning in a value; quote it: {' or '.join(readable)}"


def _forms(value: str) -> Iterator[str]:
    """What may have been meant by a value, with quotes."""
    if value.startswith("[") and value.endswith("]"):
        yield _list_of(value[1:-1])
        return
    if "," in value:
        yield _list_of(value)
    yield _item(str(Path(value).expanduser()) if value.startswith("~/") else value)


def _list_of(values: str) -> str:
    return f"[{','.join(_item(value.strip()) for value in values.split(','))}]"


def _item(value: str) -> str:
    read = _parsed(f"key={value}")
    is_itself = read is not None and not read.is_sweep_override() and str(read.value()) == value
    return value if is_itself else quoted(value)


def _is_readable(text: str) -> bool:
    read = _parsed(text)
    return read is not None and bool(read.key_or_group) and not read.is_sweep_override()


def _parsed(text: str) -> Override | None:
    try:
        return _grammar().parse_override(text)
    except HydraException:
        return None


@functools.cache
def _grammar() -> OverridesParser:
    return OverridesParser.create()


def _directory(named: str | None) -> Path | None:
    if named is not None and not named.strip():
        raise UserError("--config-dir is empty (an unset variable?): give it a directory, or leave it out")
    if named is not None and not Path(named).is_dir():
        raise UserError(f"--config-dir={named} is not a directory: give the path of an existing one")
    return None if named is None else Path(named).absolute()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; quantsweep --help lists what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config-dir", "-cd", dest="--config-dir")
    parser.add_argument("--run", "-r", action="store_true")  # which is done anyway
    for name, reading in _SHOWING.items():
        names = [name, _SHORT[name]] if name in _SHORT else [name]
        parser.add_argument(*names, dest=name, **reading)
    return parser
