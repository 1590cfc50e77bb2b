"""Something done again and again beside a block, for as long as the block lasts."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def repeated(act: Callable[[], object], every_s: float) -> Iterator[None]:
    """Call ``act`` now and then every so many seconds until the block ends; one that fails is tried again in turn.

    Whatever it fails with: object storage has errors of its own.
    """
    over = threading.Event()

    def beat() -> None:
        while True:
            with suppress(Exception):
                act()
            if over.wait(every_s):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
