"""Which files belong to installed packages, whose versions say what is in them."""

import sys
import sysconfig
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]  # this one, of which its tasks are no part


@cache
def installed_places() -> tuple[str, ...]:
    """Python's own folders, and those of its path that distributions were installed into, wherever they lie."""
    here = sysconfig.get_paths()
    own = {here[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    targets = {place for place in sys.path if place and any(Path(place).glob("*.dist-info"))}
    return (*sorted(own | targets), str(_PACKAGE))


def is_installed(file: Path) -> bool:
    """Whether a file belongs to a package, whose version says what is in it."""
    is_task = file.is_relative_to(_PACKAGE / "tasks")
    return not is_task and any(file.is_relative_to(place) for place in installed_places())
