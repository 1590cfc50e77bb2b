"""What ``--help`` and ``--version`` print: said before anything is composed, so that no other argument matters."""

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pipeline.config.command_line import config_dir
from pipeline.modes import MODES

NAME = "quantsweep"
WIDTH = 110
_EXAMPLES = (
    ("+sweep=smoke", "the whole path on a CPU, 4 to 7 minutes"),
    ("+sweep=smoke mode=plan", "what that would run; touches nothing"),
    ("+sweep=smoke recipe.group_size=32 mode=why", "which field makes a step missing"),
    ("+sweep=llama31 store.root=/shared/store", "the study's models, on GPUs"),
    ("--config-dir=DIR +sweep=mine", "your own, DIR/sweep/mine.yaml"),
)


def answer(arguments: Sequence[str]) -> str | None:
    """The page that a command line asks for, one without arguments too; None when it asks for work."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        return "\n".join(_page(config_dir(arguments)))
    if "--version" in arguments:
        return version()
    return None


def version() -> str:
    """Name and release of the installed package."""
    try:
        return f"{NAME} {metadata.version(NAME)}"
    except metadata.PackageNotFoundError:
        return f"{NAME}, not installed: its release is unknown; install the checkout, as uv run does"


def _page(own: Path | None) -> Iterator[str]:
    yield "Quantize language models, evaluate them against their originals, and say which one to ship."
    yield from ("", f"usage: {NAME} [--config-dir=DIR] +sweep=NAME [mode=MODE] [KEY=VALUE ...]")
    yield f"       (python -m pipeline ... is the same; {NAME} --version prints the release)"
    yield from ("", "A run makes what the store lacks, so the same command again goes on where it was.")
    yield from ("", "mode=MODE, run unless it is given:")
    yield from _table((name, _first_sentence(inspect.getdoc(mode) or "")) for name, mode in MODES.items())
    yield from ("", "GROUP=OPTION, a file of conf/, or of your own directory (--config-dir=DIR); a sweep with +sweep=:")
    yield from _table(_config_groups(resources.files("conf")))
    if own is not None:
        yield from ("", f"the same, of {own}:")
        yield from _table(_config_groups(own))
    yield from ("", "examples:")
    yield from _table((f"{NAME} {arguments}", meaning) for arguments, meaning in _EXAMPLES)
    yield from ("", "exit codes: 0 all is there, 1 some step failed, 2 bad input, 130 interrupted")
    yield f"every key: {NAME} --cfg job"


def _table(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Two columns; what is too long for the second goes on below itself."""
    listed = list(rows)
    indent = max((len(name) for name, _ in listed), default=0) + 4
    for name, text in listed:
        first = f"  {name}".ljust(indent)
        yield textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)


def _first_sentence(doc: str) -> str:
    return " ".join(doc.split("\n\n")[0].split()).replace("``", "")


def _config_groups(configs: Traversable) -> Iterator[tuple[str, str]]:
    """Each folder of a directory of configs with the names of its files."""
    for folder in sorted(configs.iterdir(), key=lambda entry: entry.name):
        files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        if options := sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")):
            yield folder.name, ", ".join(options)
