"""Settings as dotted keys (``optimizer.lr``) and as nested mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dd_plugins.api import ConfigError

PARTS = {"parameterization": "parameterization", "objective": "objective", "network": "network"}
SECTIONS = (*PARTS, "pruning", "optimizer", "data", "protocol", "protocol.network", "protocol.train")


def flag_key(name: str) -> str:
    """The key of a flag: a part that is given by its name sets ``part.name``."""
    return f"{name}.name" if name in (*PARTS, "pruning", "protocol") else name


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as dotted keys; a part given by its name alone sets ``part.name``.

    An empty mapping is a section without settings where a section is expected, elsewhere a value.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and (value or f"{prefix}{key}" in SECTIONS):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[flag_key(f"{prefix}{key}") if not prefix else f"{prefix}{key}"] = value
    return flat


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested values.

    Raises:
        ConfigError: If a key goes through a single value.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"unknown configuration key {key}: {parent} is a single value")
        target[last] = value
    return nested
