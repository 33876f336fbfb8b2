"""Memory: what a machine has, what parts will take before they are allocated."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dd_plugins.errors import NotEnoughMemory, UsageError

if sys.platform != "win32":
    import resource

SMALL = 2**26  # bytes below which the machine is not examined
MAX_PARAMETERS = 20_000  # parameter tensors of one module: thousands of layers
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
OVERFLOWS = ("overflow", "symint", "prims::iota")  # in messages of torch about sizes beyond int64


def in_units(nbytes: int) -> str:
    """A number of bytes as people read it: ``1536`` as ``1.5 KiB``; beyond 1024 PiB in powers of ten."""
    if nbytes >= 1024 ** len(UNITS):
        return f"10^{len(str(nbytes)) - 1} B"
    power = max(0, min((nbytes.bit_length() - 1) // 10, len(UNITS) - 1))
    return f"{nbytes} B" if not power else f"{nbytes / 1024**power:.1f} {UNITS[power]}"


def available_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that this process can hold on a device, with what it holds already.

    On the CPU the least of: what the machine has free or can reclaim, swap included; limits of the control groups
    that the process is in; and the process's limit of address space (``ulimit -v``).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    own = psutil.Process().memory_info()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of swap statistics that a container hides
        swap = psutil.swap_memory().free
    limits = [psutil.virtual_memory().available + swap + own.rss]
    limits += [free + swap + own.rss for free in control_group_memory()]
    if sys.platform != "win32":
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            limits.append(most - own.vms + own.rss)
    return max(min(limits), 0)


def control_group_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that are free, or only hold file contents, in each control group (of either version) with a limit."""
    try:
        groups = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):  # no Linux
        return []
    found = []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        inner = base / path.lstrip("/")
        # Within a container the path may be that of the host, of which only the root is visible.
        for folder in {base, *(one for one in (inner, *inner.parents) if base in one.parents)}:
            limit, used = _number(folder / names[0]), _number(folder / names[1])
            if limit is not None and used is not None:
                found.append(limit - used + _reclaimable(folder / "memory.stat"))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max": no limit
        return None


def _reclaimable(path: Path) -> int:
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return 0
    values = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
    prefix = "total_" if "total_inactive_file" in values else ""
    return sum(values.get(f"{prefix}{name}_file", 0) for name in ("active", "inactive"))


def require_memory(
    parts: Mapping[str, int],
    device: torch.device | str | None = "cpu",
    hint: str = "",
    error: type[UsageError] = NotEnoughMemory,
) -> None:
    """Refuses what does not fit into memory, before it is allocated.

    Args:
        parts: Bytes of each part, by what it is.
        device: Where it would be; None: wherever there is most.
        hint: What needs less, for the message.
        error: Class of the error.

    Raises:
        NotEnoughMemory: Or the class given, with the size of every part, and what is available.
    """
    needed = sum(parts.values())
    if needed <= SMALL:
        return
    devices = [device] if device is not None else ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    available = max(available_memory(one) for one in devices)
    if needed > available:
        listed = ", ".join(f"{name} {in_units(size)}" for name, size in parts.items() if size)
        message = (
            f"at least {in_units(needed)} of memory would be needed ({listed}), but {in_units(available)} are available"
        )
        raise error(f"{message}; {hint}" if hint else message)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, also of those without content on the meta device."""
    return sum(_nbytes(tensor) for tensor in (*module.parameters(), *module.buffers()))


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def shapes_only(what: str) -> Iterator[None]:
    """Within it tensors are created on the meta device, with a shape and no content.

    Args:
        what: What is created, for messages.

    Raises:
        UsageError: If sizes are beyond what a tensor can have, or there are too many parameters to train.
    """
    count, thread = 0, threading.get_ident()

    def note(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > MAX_PARAMETERS:
                raise NotEnoughMemory(f"{what} has more than {MAX_PARAMETERS:,} parameter tensors; choose fewer layers")

    hook = register_module_parameter_registration_hook(note)
    try:
        with torch.device("meta"):
            yield
    except Exception as error:
        if _is_overflow(error) or _is_overflow(error.__cause__):
            raise NotEnoughMemory(f"{what} is larger than any memory: a size is beyond 64 bits") from None
        raise
    finally:
        hook.remove()


def _is_overflow(error: BaseException | None) -> bool:
    if isinstance(error, OverflowError):
        return True
    return isinstance(error, RuntimeError | TypeError | ValueError) and any(
        text in str(error).lower() for text in OVERFLOWS
    )
