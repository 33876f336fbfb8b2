"""What pydantic found wrong, as one line: the path, the value, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

SHOWN = 10  # faults that a message lists; the others are counted
LONGEST = 80  # characters of a value or key


def describe(failure: ValidationError, model: type[BaseModel], path: str = "") -> str:
    """The first ten faults, each with its dotted path and value, and how many more there are.

    Args:
        failure: What pydantic raised.
        model: The model that was validated.
        path: Where its values stand, put before each dotted path.
    """
    found = failure.errors(include_url=False)
    lines = [_explain(model, item, path) for item in found[:SHOWN]]
    more = len(found) - SHOWN
    return "; ".join([*lines, *([f"and {more:,} more"] if more > 0 else [])])


def shown(value: Any) -> str:
    """A value as Python writes it, cut to 80 characters."""
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        return f"a value of type {type(value).__name__}"


def shortened(text: str, limit: int = LONGEST) -> str:
    """The beginning of a text as one printable line."""
    cut = f"{text[:limit]}... ({len(text):,} characters)" if len(text) > limit else text
    line = " ".join(cut.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _explain(model: type[BaseModel], item: Mapping[str, Any], path: str) -> str:
    keys = [shortened(str(key)) for key in item["loc"]]
    dotted = ".".join([path, *keys] if path else keys)
    if item["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, keys[:-1]))
        elsewhere = [each for each in keys_of(model, path) if each.rpartition(".")[2] == keys[-1]]
        near = elsewhere[:SHOWN] or difflib.get_close_matches(keys[-1], known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known) or 'none'}"
        return f"unknown configuration key {dotted}; {hint}"
    if item["type"] == "missing":
        return f"{dotted} is missing"
    mapping = item["type"] in ("model_type", "model_attributes_type", "dict_type")
    message = "expected a mapping" if mapping else shortened(str(item["msg"]), 300)
    return f"{dotted} = {shown(item['input'])}: {message}" if dotted else f"{message}, but got {shown(item['input'])}"


def _fields_at(model: type[BaseModel], keys: list[str]) -> list[str]:
    for key in keys:
        field = model.model_fields.get(key)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def keys_of(model: type[BaseModel], section: str = "") -> Iterator[str]:
    """The dotted keys of all settings, those of nested models included."""
    for name, field in model.model_fields.items():
        key, inner = f"{section}.{name}" if section else name, field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys_of(inner, key)
        else:
            yield key
