"""Locks between processes and threads; a lock file names its holder, and a process that waits reports for whom.

The locks are those of filelock: ``flock(2)`` on Linux and macOS, ``LockFileEx`` on Windows. The kernel releases them
when the process ends, however it ends. On NFS, Linux turns them into byte-range locks that hold between hosts if the
mount has a lock service; on a mount with ``nolock`` or ``local_lock`` they hold within one host, so only one host at a
time should write to a folder there.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from dd_plugins.api.atomic import host_name, is_stopped, no_symbolic_link
from dd_plugins.api.faults import shortened

POLL_SECONDS = 0.2  # between two attempts to get a lock
FIRST_NOTICE_SECONDS = 1.0  # a shorter wait is not reported
NOTICE_SECONDS = 60.0  # between later reports
MOST_BYTES = 4096  # read of a lock file

logger = logging.getLogger(__name__)


class _Replaced(Exception):
    """The lock file was removed or replaced between opening and locking it."""


@contextmanager
def locked(file: Path, what: str | None = None, poll: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Excludes other processes and threads from what the file stands for.

    The lock is released when the process ends, however it ends. A process that is stopped (SIGSTOP) keeps it.

    Args:
        file: Created if it does not exist, and kept; names the holder as JSON.
        what: What another process may be making, to wait for it: a warning says for what and for whom after a second,
            and again every minute. None: raise instead of waiting.
        poll: Called repeatedly while waiting; an exception that it raises ends the wait.

    Raises:
        BlockingIOError: If another process holds it, and ``what`` is None.
        OSError: If the file cannot be created, or its file system has no locks; names the file.
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
        held.release()


def holder(file: Path) -> str:
    """Who holds a lock, such as ``process 4711 on host-a since 2026-01-31T12:00:00``, and whether it is stopped."""
    try:
        with file.open("rb", buffering=0) as opened:
            opened.seek(1)  # on Windows the first byte is what is locked, and cannot be read
            found = json.loads(b"{" + opened.read(MOST_BYTES))
        pid, host, since = int(found["pid"]), str(found["host"]), str(found["since"])
        stopped = found["owner"] == host_name() and is_stopped(pid)
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return "another process"
    return f"process {pid}{' (stopped)' if stopped else ''} on {shortened(host, 64)} since {shortened(since, 32)}"


def _acquired(file: Path) -> BaseFileLock | None:
    """The lock; None if another process or thread has it."""
    file.parent.mkdir(parents=True, exist_ok=True)

    def sign(descriptor: int) -> None:
        if not _is_still(file, descriptor):
            raise _Replaced
        _sign(descriptor)

    while True:
        os.close(no_symbolic_link(str(file), os.O_RDWR | os.O_CREAT))
        lock = FileLock(
            file, timeout=0, thread_local=False, fallback_to_soft=False, preserve_lock_file=True, on_acquired=sign
        )
        try:
            lock.acquire()
        except Timeout:
            if file.exists():
                return None
        except _Replaced:
            continue
        except OSError as error:
            error.filename = str(file)
            raise
        else:
            return lock


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
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{json.dumps(about)}\n".encode())
