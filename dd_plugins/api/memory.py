"""Memory: what this machine has left, and a refusal by arithmetic of what would not fit."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from dd_plugins.errors import NotEnoughMemory

CGROUP = Path("/sys/fs/cgroup")
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def available_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that this process can still allocate on a device.

    Args:
        device: A GPU: what is free on it. The CPU: free memory and swap, within the limits of the control group (as
            containers and cluster schedulers set them) and of the address space (``ulimit -v``).
    """
    device = torch.device(device)
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    limits = [
        psutil.virtual_memory().available + psutil.swap_memory().free,
        _left_in_cgroup(),
        _left_in_address_space(),
    ]
    return max(0, min(limit for limit in limits if limit is not None))


def require_memory(parts: Mapping[str, int], device: torch.device | str = "cpu") -> None:
    """Refuses what does not fit into memory, before it is allocated.

    Args:
        parts: Bytes of each part, by what it is.
        device: Where it would be.

    Raises:
        NotEnoughMemory: With the size of every part, and what is available.
    """
    needed, available = sum(parts.values()), available_memory(device)
    if needed > available:
        listed = ", ".join(f"{name} {in_units(size)}" for name, size in parts.items())
        raise NotEnoughMemory(
            f"about {in_units(needed)} of memory would be needed ({listed}), but {in_units(available)} are available"
        )


def in_units(nbytes: int) -> str:
    """A number of bytes as people read it: ``1536`` as ``1.5 KiB``; beyond 1024 PiB in powers of ten."""
    if nbytes >= 1024 ** len(UNITS):
        return f"10^{len(str(nbytes)) - 1} B"
    power = max(0, min((nbytes.bit_length() - 1) // 10, len(UNITS) - 1))
    return f"{nbytes} B" if not power else f"{nbytes / 1024**power:.1f} {UNITS[power]}"


def _left_in_cgroup() -> int | None:
    """What the control group (version 2) leaves; pages of files that can be dropped do not count as taken."""
    try:
        limit, taken = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit ("max"), or no such control group
        return None
    return limit - taken + int(stat.get("inactive_file", 0))


def _left_in_address_space() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit - int(psutil.Process().memory_info().vms)
