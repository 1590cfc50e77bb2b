"""Imports of large libraries, without what slows them down."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Nobody looks for garbage in the block.

    An import makes objects by the hundred thousand and leaves none behind; looking for some takes a third of vLLM's
    (10.6 s of processor time, and 6.9 s without) and a quarter of torch's and transformers'.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
