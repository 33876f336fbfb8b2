"""Seeds from names, and the one place where a random generator is seeded."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator

_seeding = threading.RLock()


def seed_for(*path: str | int) -> int:
    """The seed that belongs to a path of names, the same on every machine and in every release.

    Parts of a run draw from generators of their own, so that adding a draw in one place moves no other.

    Args:
        path: What the random numbers are for, from the general to the particular.

    Returns:
        The first 8 bytes of the sha256 of the path's JSON, modulo 2**63.

    Example:
        >>> seed_for("eval", 0) == seed_for("eval", 0) != seed_for("eval", 1)
        True
    """
    digest = hashlib.sha256(json.dumps(path).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


def make_generator(seed: int) -> Generator:
    """A new generator on the CPU; torch's global generator is neither read nor changed.

    Args:
        seed: From 0 to ``2**63 - 1``, for example from `seed_for`.

    Returns:
        The seeded generator.
    """
    return Generator().manual_seed(seed)  # the one place that seeds (noqa: seed)


@contextmanager
def seeded_layers(seed: int) -> Iterator[None]:
    """Within it layers are initialised from ``seed``, on the CPU; the global generator is put back afterwards.

    The one place that seeds a global generator: layers can draw their weights from nowhere else. It is the CPU's alone,
    because torch.manual_seed would also re-seed every GPU, which fork_rng does not restore here. One thread at a time
    is within it: two would draw from one generator in turns.
    """
    with _seeding, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield
