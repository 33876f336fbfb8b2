"""Files and folders that are whole or not there, and the removal of what an ended process left half written.

A temporary name says which process made it: host with PID namespace, process id, and start time of the process. So a
later process can tell whether the owner still runs. `write_atomically`, `staged` and `temporary_folder` remove what
was left in the folder that they write to.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import psutil

from dd_plugins.errors import FolderReplaced, UsageError

KEPT_SECONDS = 7 * 24 * 3600.0  # for files whose owner cannot be checked: of other hosts, of earlier releases
NAME_LENGTH = 24  # characters of the final name within a temporary one, which must not exceed 255 bytes
OWNED = r".*\.(?P<host>.+)-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}"
EARLIER = r".*\.(?:json|jsonl|yaml|safetensors|npz|npy|pt|csv|png|svg|pdf)\.\d+"  # other programs have such names, too
TEMPORARY = re.compile(rf"\.(?:{OWNED}|{EARLIER})\.tmp", re.DOTALL)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows does not have it
_PLAIN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

# (file, st_dev, st_ino) of the lock of each folder that must stay in place while this context writes to it
_guarded: ContextVar[tuple[tuple[Path, int, int], ...]] = ContextVar("_guarded", default=())


def host_name() -> str:
    """The host's name, with the PID namespace: containers may share a host name but not their process ids."""
    try:
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()


def process_start(pid: int) -> int | None:
    """When a process of this host started: on Linux in clock ticks since boot, elsewhere in hundredths of a second.

    Returns:
        None if there is no such process, or only a zombie; 0 if it exists and its start is not known.
    """
    if Path("/proc/self/stat").exists():
        fields = _process_fields(pid)
        return int(fields[19]) if fields and fields[0] not in "ZX" else None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(100 * process.create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # another user's
        return 0


def is_stopped(pid: int) -> bool:
    """Whether a process of this host is suspended (SIGSTOP)."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def _process_fields(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def temporary_path(path: Path) -> Path:
    """A new hidden name next to ``path`` that names its owner; distinct for each call, also between threads."""
    owner = f"{host_name()}-{os.getpid()}-{process_start(os.getpid()) or 0}-{uuid4().hex[:8]}"
    return path.with_name(f".{path.name[:NAME_LENGTH]}.{owner}.tmp")


def sweep(folder: Path, name: str = "") -> None:
    """Removes the temporary files and folders of processes that ended, directly within ``folder``.

    Those of other hosts, and of earlier releases, whose names did not contain the owner, are removed after seven days.
    What cannot be removed stays; a missing folder is no error.

    Args:
        folder: The folder.
        name: Beginning of the final names, for a folder that is shared with other programs.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        named = [entry for entry in entries if entry.name.startswith(f".{name}")]
        found = [(entry, match) for entry in named if (match := TEMPORARY.fullmatch(entry.name))]
        for entry in (entry for entry, match in found if _is_left(match, entry)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)


def _is_left(found: re.Match[str], entry: os.DirEntry[str]) -> bool:
    """Whether the owner of a temporary file or folder is gone."""
    if found["host"] == host_name():
        return process_start(int(found["pid"])) != int(found["start"])
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > KEPT_SECONDS
    except OSError:
        return False


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Writes ``content`` so that ``path`` holds either what it held before or all of it, also after a crash.

    Args:
        path: The file; missing folders are made.
        content: The bytes, or a function that writes them to an open file, for what is too large to hold twice.

    Raises:
        FolderReplaced: If ``path`` lies in a folder that is `guarded` and was removed or replaced.
        OSError: If it cannot be written; names ``path``.
    """
    check_guarded(path)
    temporary = temporary_path(path)
    try:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            with temporary.open("xb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name ``path``: a full disk does not say what could not be written, and temporary names say nothing."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def temporary_folder(target: Path | None = None) -> Iterator[Path]:
    """A new folder that is removed at the end, and by a later call if the process is killed.

    Args:
        target: The folder is made next to it; None: in the system's folder of temporary files, for this user alone.
    """
    near = target or Path(tempfile.gettempdir()) / "dd-plugins"
    sweep(near.parent, "" if target else f"{near.name}.")
    folder = temporary_path(near)
    with _naming(target or near.parent):
        folder.mkdir(0o700 if target is None else 0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``target`` when all is written, and else leaves nothing.

    Raises:
        UsageError: If ``target`` is there already.
    """
    if target.exists():
        raise UsageError(f"{target} is there already; nothing was written")
    made = _make_parents(target.parent)
    try:
        with temporary_folder(target) as folder:
            yield folder
            for path in folder.rglob("*"):
                if path.is_file():
                    with path.open("r+b") as file:  # Windows flushes only files that are open for writing
                        os.fsync(file.fileno())
            with _naming(target):
                folder.rename(target)
    except BaseException:
        for parent in made:
            with suppress(OSError):  # something else is in it by now
                parent.rmdir()
        raise


def _make_parents(folder: Path) -> list[Path]:
    """Makes a folder and returns what had to be made, the innermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextmanager
def guarded(lock: Path) -> Iterator[None]:
    """Within it nothing is written below ``lock.parent`` once ``lock`` is another file than at the start.

    A folder that was removed would otherwise come into being again with a part of its files, and one that was replaced
    may be another process's.
    """
    found = lock.stat()
    token = _guarded.set((*_guarded.get(), (lock, found.st_dev, found.st_ino)))
    try:
        yield
    finally:
        _guarded.reset(token)


def no_symbolic_link(path: str, flags: int) -> int:
    """An opener for `open` that follows no symbolic link.

    For files that are written in place: in a folder from somebody else a link could lead to any file of the user's.
    Files that `write_atomically` writes need it not: it replaces a link.

    Raises:
        OSError: If ``path`` is a symbolic link; says so.
    """
    try:
        if not _NOFOLLOW and os.path.islink(path):
            raise OSError(errno.ELOOP, "", path)
        return os.open(path, flags | _NOFOLLOW | _PLAIN, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "is a symbolic link; what it leads to is not written"
        error.filename = path
        raise


def check_guarded(path: Path) -> None:
    """Refuses to write below a `guarded` folder that was removed or replaced.

    Raises:
        FolderReplaced: Names the folder.
    """
    for lock, device, inode in _guarded.get():
        if not path.is_relative_to(lock.parent):
            continue
        try:
            found = lock.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (device, inode):
            what = lock if found is None and lock.parent.is_dir() else lock.parent
            raise FolderReplaced(
                f"{what} was {'removed' if found is None else 'replaced'} while this command was writing to "
                f"{lock.parent}; nothing more is written there, and the same command starts or continues the run"
            )
