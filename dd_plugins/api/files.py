"""Files that are either whole or not there, locks, and files of tensors."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dd_plugins.errors import SyntheticFileError, UsageError

POLL_SECONDS = 0.2  # between two looks at a lock


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Writes ``content`` so that ``path`` holds either what it held before or all of it, also after a crash.

    Args:
        path: The file; missing folders are made.
        content: The bytes, or a function that writes them to an open file, for what is too large to hold twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say what could not be written
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(file: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Keeps other processes out of what the file stands for; the lock goes with the process, however it ends.

    Args:
        file: Is made if it is not there, and stays.
        waiting: Called again and again while another process holds the lock; what it raises ends the wait.

    Raises:
        BlockingIOError: If another process holds it, and ``waiting`` is None.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting is None:
                    raise
                waiting()
                time.sleep(POLL_SECONDS)
        yield


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``target`` when all is written, and else leaves nothing.

    Raises:
        UsageError: If ``target`` is there already.
    """
    if target.exists():
        raise UsageError(f"{target} is there already; nothing was written")
    made = _make_parents(target.parent)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # something else is in it by now
                folder.rmdir()
        raise


def _make_parents(folder: Path) -> list[Path]:
    """Makes a folder and returns what had to be made, the innermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors and string metadata as one safetensors file, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, dict(metadata)))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file: its tensors (on the CPU) and its metadata.

    Raises:
        SyntheticFileError: If the file is missing, truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise SyntheticFileError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise SyntheticFileError(f"{path}: truncated, or not a safetensors file ({error})") from None
