"""The machine: its devices, the peak of memory, and versions."""

from __future__ import annotations

import ctypes
import platform
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from dd_plugins.api import UsageError

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def choose_device(name: str | None) -> torch.device:
    """The device of that name; without one a GPU if there is one.

    Raises:
        UsageError: If it is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; write cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported; write cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() or "no"
        raise UsageError(f"device {name!r} was asked for, but torch finds {found} CUDA device here")
    return device


def peak_memory_mib(device: torch.device) -> float:
    """The most memory taken since the last `forget_peak`: of the device on a GPU, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        (line,) = [text for text in _STATUS.read_text().splitlines() if text.startswith("VmHWM")]
        return float(line.split()[1]) / 2**10
    except (OSError, ValueError):  # not on Linux
        return _peak_elsewhere_mib()


def _peak_elsewhere_mib() -> float:
    """The most memory of the process since it started, on Windows and macOS."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource  # not on Windows

    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def forget_peak(device: torch.device) -> None:
    """Begins anew to look for the most memory, so that one run of many has a figure of its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # elsewhere than on Linux with glibc the peak is that of the process
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR_REFS.write_text("5")


def versions() -> dict[str, str]:
    """What a record says about the software and the machine."""
    return {
        "dd-plugins": version("dd-plugins"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
