"""The way to a Ray cluster: one of this machine's own, or one that runs."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from pipeline.errors import UserError
from stages.errors import one_line

LOCAL_START_ATTEMPTS = 3
CONNECT_WITHIN_S = 20.0


def connect(address: str | None, num_cpus: int | None) -> None:
    """Start Ray on this machine with ``num_cpus``, or connect to the cluster at ``address``.  Raises UserError."""
    with _own_signals():
        if address is None:
            _start_local(num_cpus)
        else:
            _join(address)
    _silence_deaths()


def _join(address: str) -> None:
    import ray

    try:
        _check_answers(address)
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except OSError as error:
        raise UserError(f"cluster.address={address}: no Ray cluster there ({one_line(error)})") from None


def _check_answers(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself goes on asking for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), CONNECT_WITHIN_S).close()


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
    """Keep Ray's ten lines for every dead worker off the live display; the ledger says what died and why.

    ``log_to_driver=False`` does not reach them, and Ray has no public way to.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
