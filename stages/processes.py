"""Processes that must not outlive the one that started them."""

import ctypes
import signal

_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec nothing may be imported
_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send ``number`` to this process when its parent dies: one that is killed cannot clean up."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
