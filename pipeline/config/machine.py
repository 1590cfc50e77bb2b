"""What a run takes from its machine besides what configs say."""

import os
from pathlib import Path

from pipeline.errors import UserError


def check_home() -> None:
    """Raise UserError where there is no home directory: Ray's token and compiled kernels are kept there."""
    home = Path(os.environ.get("HOME") or Path.home())
    try:
        home.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(home, os.W_OK | os.X_OK) or "XDG_CACHE_HOME" in os.environ else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise UserError(f"the home directory {home} cannot be written ({reason}): set HOME to a directory of yours")
