"""Memory of the command's process; imports no library, since it must come before every library that starts threads."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Has glibc keep freed memory instead of handing it back to the kernel.

    Activations of a few megabytes are otherwise mapped, faulted in page by page and unmapped at every layer: measured
    with a ConvNet of width 32 at batch 256 on 2 cores, a forward pass takes 27 ms instead of 123, a second-order one
    247 instead of 665. All threads share the main arena, since the others give memory back whatever is said here: a
    step of ``dsa`` at width 128 and IPC 10 takes 7.7 s instead of 11.0. An arena that a thread has left is taken by
    the next one, so this must be called before any thread was started. A process-wide setting, hence for the command
    alone; elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 2**26)
