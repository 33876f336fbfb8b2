"""How a plugin shows the progress of costly one-off work, without knowing who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# ``with job("experts", total) as update: update(done)``
StartJob = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silent_job(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A job whose progress nobody watches."""
    del name, total
    yield lambda done: None
