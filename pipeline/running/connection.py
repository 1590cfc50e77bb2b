"""The way to a Ray cluster: one of this machine's own, or one that runs."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from pipeline.errors import UserError
from pipeline.running.handshake import shake_hands
from stages.errors import one_line

LOCAL_START_ATTEMPTS = 3
# Under `uv run` Ray would build a second environment for its workers; they share this one, or their node's.  Set here,
# because Ray reads it when it is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def connect(address: str | None, num_cpus: int | None) -> None:
    """Start Ray on this machine with ``num_cpus``, or connect to the cluster at ``address``.  Raises UserError."""
    with _own_signals():
        if address is None:
            _start_local(num_cpus)
        else:
            _join(address)
    _silence_deaths()


def _join(address: str) -> None:
    head = shake_hands(address)
    import ray

    try:
        ray.init(address=head, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise UserError(
            f"cluster.address={address}: Ray does not let this process in ({one_line(error)}): the driver must run on "
            "a machine where `ray start` has been called"
        ) from None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts, and then a driver that Slurm ends says nothing."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _start_local(num_cpus: int | None) -> None:
    """Start Ray on this machine.

    Ray gives its agents 15 s to come up and does not let one change that (ray-project/ray issue 65983); on a busy
    machine they may need more, and the second start finds their files in memory.
    """
    # What a step started must not outlive the worker that ran it, however that ended.  (Ray's other way, a subreaper,
    # ignores SIGCHLD in every worker and in this process, which breaks whoever waits for a child.)
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "true")
    import ray

    for attempt in range(1, LOCAL_START_ATTEMPTS + 1):
        try:
            # "local": never the cluster that somebody else runs on this machine.
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
            return
        except Exception as error:
            ray.shutdown()
            print(f"Ray did not start (attempt {attempt} of {LOCAL_START_ATTEMPTS})", file=sys.stderr)
            if attempt == LOCAL_START_ATTEMPTS:
                raise UserError(
                    f"a local Ray cluster did not start in {attempt} attempts ({one_line(error)}): free some CPU and "
                    "run again, or run without Ray: cluster=inline"
                ) from None


def _silence_deaths() -> None:
    """Keep what Ray prints of every dead worker and node (20 lines each) off the live display: the ledger says it.

    ``log_to_driver=False`` does not reach it, and Ray has no public way to.
    """
    with contextlib.suppress(ImportError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *arguments, **options: None
