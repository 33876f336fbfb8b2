"""Independent work side by side on the CPU: a thread for each piece, and one of torch's threads within it.

Torch shares one operation among threads; where operations are small that gains little (a matching step of a width-32
ConvNet on 2 cores: 0.50 s with 2 threads, 0.44 s with one), while whole pieces side by side gain nearly all (0.24 s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], wanted: bool = True) -> list[Result]:
    """The results of ``work`` on every item, in their order; as many at a time as torch may use threads.

    Args:
        work: Independent of the other items: what it draws comes from a generator of its own.
        items: What to work on.
        wanted: Otherwise, and where torch has one thread only, one item after the other in this thread.
    """
    workers = torch.get_num_threads()
    if not wanted or workers == 1:
        return [work(item) for item in items]
    with one_thread(), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Within it torch's operations take one thread each; nothing happens unless ``wanted``."""
    if not wanted:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
