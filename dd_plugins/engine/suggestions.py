"""Suggestions for configuration keys that do not exist: the same setting where it belongs, or a similar key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel

from dd_plugins.api.faults import keys_of
from dd_plugins.names import near, quoted, suggestion

SHOWN, CHOICES = 10, 4


def unknown_keys(unknown: Sequence[str], models: Mapping[str, type[BaseModel]]) -> str:
    """The message about keys that no section has.

    Args:
        unknown: Dotted keys.
        models: For each section (``optimizer``; empty for the top) the model of its settings.
    """
    known = [key for section, model in models.items() for key in keys_of(model, section)]
    found = [
        f"unknown configuration key {quoted(key)[1:-1]}{suggestion(similar(key, known))}" for key in unknown[:SHOWN]
    ]
    more = len(unknown) - SHOWN
    return "; ".join([*found, *([f"and {more:,} more"] if more > 0 else [])])


def similar(key: str, known: Iterable[str]) -> list[str]:
    """The known keys that ``key`` may mean: those with the same last part first, then those of similar spelling."""
    known = list(known)
    last = key.rpartition(".")[2].casefold()
    same = [each for each in known if each.rpartition(".")[2].casefold() == last]
    same += [each for each in known if each.casefold().endswith(f"_{last}")]
    if not same:
        leaves = near(last, [each.rpartition(".")[2] for each in known])
        same = [each for each in known if each.rpartition(".")[2] in leaves]
    ranked = sorted(same, key=lambda each: -difflib.SequenceMatcher(None, key, each).ratio())
    return ranked[:CHOICES]
