"""Which files belong to installed packages, whose versions say what is in them."""

import csv
import os
import sys
import sysconfig
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]  # this one, of which its tasks are no part
_FOR_PACKAGES = ("site-packages", "dist-packages")  # what else lies there nobody has put there by hand


@cache
def installed_places() -> frozenset[str]:
    """Folders and files: Python's own, and those of packages in the folders of its path, wherever they lie."""
    here = sysconfig.get_paths()
    found = {str(_PACKAGE), *(here[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))}
    for folder in {os.path.normpath(Path(place).absolute()) for place in sys.path if place}:
        found |= {folder} if Path(folder).name in _FOR_PACKAGES else set(_recorded(folder))
    return frozenset(found)


def is_installed(file: Path) -> bool:
    """Whether a file belongs to a package, whose version says what is in it."""
    path = Path(os.path.normpath(file.absolute()))
    is_task = path.is_relative_to(_PACKAGE / "tasks")
    return not is_task and any(str(place) in installed_places() for place in (path, *path.parents))


def _recorded(folder: str) -> Iterator[str]:
    """What distributions say that they have put into a folder: one's own may lie beside it."""
    files = [name for record in Path(folder).glob("*.dist-info/RECORD") for name in _names(record)]
    packages = {name.removesuffix("/__init__.py") for name in files if name.endswith("/__init__.py")}
    yield from (f"{folder}/{name}" for name in {_outermost(name, packages) for name in files})


def _names(record: Path) -> Iterator[str]:
    """Without what lies outside of the record's folder, like scripts."""
    with suppress(OSError, csv.Error), record.open(encoding="utf-8", errors="replace", newline="") as stream:
        names = (os.path.normpath(row[0]) for row in csv.reader(stream) if row)
        yield from (name for name in names if not name.startswith(("..", "/")))


def _outermost(name: str, packages: Collection[str]) -> str:
    """The first package on the way to a file; without one the file itself."""
    on_the_way = accumulate(name.split("/"), lambda above, part: f"{above}/{part}")
    return next((place for place in on_the_way if place in packages), name)
