"""Where a computation runs, and with how many threads.

Torch splits one operation among threads; where operations are small that gains little (a matching step of a width-32
ConvNet on 2 cores: 0.50 s with 2 threads, 0.44 s with one), while independent pieces in parallel gain nearly all
(0.24 s). The number of threads also decides the last bits of a result, so it is explicit and recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

import torch

from dd_plugins.api import DataSpec, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")
SMALL_BATCH = 65_536  # numbers in a batch up to which operations are too small for two threads to share
MATCHED_IMAGES = 256  # in a usual batch of a matching step
_changing = threading.RLock()  # the thread count is a setting of the whole process


@dataclass(frozen=True)
class Execution:
    """Where a computation runs. Results are bit-identical for equal ``threads`` on the CPU.

    Attributes:
        device: The device of images and networks.
        threads: Threads of one torch operation on the CPU; None: see `for_data`.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", torch.device(self.device))
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"Expected threads to be at least 1, but got {self.threads}")

    def for_data(self, data: DataSpec) -> Execution:
        """The same with ``threads`` filled in: one for images as small as the digits, else torch's number."""
        if self.threads is not None:
            return self
        small = prod(data.image_shape) * MATCHED_IMAGES <= SMALL_BATCH
        return Execution(self.device, 1 if small else torch.get_num_threads())

    @contextmanager
    def scope(self) -> Iterator[None]:
        """A scope within which torch uses ``threads`` threads for an operation; the number is restored afterwards.

        One thread of the process at a time is within a scope; others wait.
        """
        with _changing:
            before = torch.get_num_threads()
            torch.set_num_threads(self.threads or before)
            try:
                yield
            finally:
                torch.set_num_threads(before)


def parallel_map(work: Callable[[Item], Result], items: Iterable[Item], parallel: bool = True) -> list[Result]:
    """Applies ``work`` to every item, as many at a time as torch may use threads, each with one torch thread.

    Args:
        work: Independent of the other items: what it draws comes from a generator of its own.
        items: What to work on.
        parallel: If False, or if torch has one thread only, one item after the other in this thread.

    Returns:
        The results in the order of the items.
    """
    workers = torch.get_num_threads()
    if not parallel or workers == 1:
        return [work(item) for item in items]
    with Execution(threads=1).scope(), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))
