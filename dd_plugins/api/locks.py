"""Locks between processes: who holds one is written into it, and who waits for one says so.

The locks are those of ``flock(2)``: the kernel releases them when the process ends, however it ends. On NFS, Linux
turns them into byte-range locks that hold between hosts, if the mount has a lock service; on a mount with ``nolock`` or
``local_lock`` they hold within one host alone, so there only one host at a time should write to a folder.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dd_plugins.api.atomic import host_name, no_symbolic_link, process_fields
from dd_plugins.api.faults import shortened

POLL_SECONDS = 0.2  # between two attempts to get a lock
FIRST_NOTICE_SECONDS = 1.0  # a shorter wait is not reported
NOTICE_SECONDS = 60.0  # between later reports
MOST_BYTES = 4096  # read of a lock file

logger = logging.getLogger(__name__)


@contextmanager
def locked(file: Path, what: str | None = None, poll: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keeps other processes and threads out of what the file stands for.

    The lock is released when the process ends, however it ends. A process that is stopped (SIGSTOP) keeps it.

    Args:
        file: Is made if it is not there, and stays; names the holder as JSON.
        what: What another process may be making, to wait for it: a warning says for what and for whom after a second,
            and again every minute. None: raise instead of waiting.
        poll: Called again and again while waiting; what it raises ends the wait.

    Raises:
        BlockingIOError: If another process holds it, and ``what`` is None.
        OSError: If the file cannot be made, or its file system has no locks; names the file.
    """
    reported, wait = time.monotonic(), FIRST_NOTICE_SECONDS
    while (held := _acquired(file)) is None:
        if what is None:
            raise BlockingIOError(f"{file} is held by {holder(file)}")
        poll()
        if time.monotonic() - reported >= wait:
            reported, wait = time.monotonic(), NOTICE_SECONDS
            logger.warning("waiting for %s: %s is held by %s", what, file, holder(file))
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        fcntl.flock(held, fcntl.LOCK_UN)  # a forked process that has the descriptor, too, would keep it
        os.close(held)


def holder(file: Path) -> str:
    """Who holds a lock, such as ``process 4711 on host-a since 2026-01-31T12:00:00``, and whether it is stopped."""
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(MOST_BYTES))
        pid, host, since = int(found["pid"]), str(found["host"]), str(found["since"])
        stopped = found["owner"] == host_name() and process_fields(pid)[:1] in (["T"], ["t"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return "another process"
    return f"process {pid}{' (stopped)' if stopped else ''} on {shortened(host, 64)} since {shortened(since, 32)}"


def _acquired(file: Path) -> int | None:
    """A descriptor that holds the lock; None if another process has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = no_symbolic_link(str(file), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(file, descriptor):
                _sign(descriptor)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            error.filename = str(file)
            raise
        os.close(descriptor)  # was removed before it was locked


def _is_still(file: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    return False


def _sign(descriptor: int) -> None:
    """Writes who holds the lock; a full disk is no reason to fail here."""
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    about = {"host": socket.gethostname(), "owner": host_name(), "pid": os.getpid(), "since": since}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{json.dumps(about)}\n".encode(), 0)
