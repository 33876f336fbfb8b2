"""Parts of messages: paths and lists that may be long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

LISTED = 20  # items that a message lists


def first_items(items: Sequence[str]) -> list[str]:
    """The first items of a list, and how many more there are."""
    more = [f"and {len(items) - LISTED} more"] if len(items) > LISTED else []
    return [*items[:LISTED], *more]


def first_of(items: Sequence[str], separator: str = "; ") -> str:
    """The first items of a list in one line, and how many more there are."""
    return separator.join(first_items(items))


def shown(path: Path) -> str:
    """A path as text; bytes of its name that are not UTF-8 are replaced."""
    return str(path).encode(errors="replace").decode()
