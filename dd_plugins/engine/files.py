"""Plugins that are YAML files: what a method and a protocol have in common."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from dd_plugins import registry
from dd_plugins.api import ConfigError, PluginLoadError
from dd_plugins.api.reading import read_yaml
from dd_plugins.datasets import split_spec
from dd_plugins.registry import PluginInfo

# The settings that name a plugin, and its kind.
NAMES = {
    "parameterization.name": "parameterization",
    "objective.name": "objective",
    "network.name": "network",
    "protocol.name": "protocol",
    "protocol.network.name": "network",
    "pruning.name": "pruning",
}
DATASETS = ("dataset", "data.as")  # settings that name a data set, which may have an argument


def file_values(info: PluginInfo) -> dict[str, Any]:
    """The content of a method's or protocol's file.

    Raises:
        PluginLoadError: If there is no such file, or it is damaged; names the distribution and its version.
    """
    path = info.source()
    try:
        if path is None:
            raise ConfigError(info.status()[1])
        values = _read(path, path.stat().st_mtime_ns)
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected a mapping, but got {type(values).__name__}")
        if "name" in values:
            raise ConfigError(f"{path}: a {info.kind} has the name of its file; remove name: {values['name']}")
    except (ConfigError, OSError) as error:
        raise PluginLoadError(f"{described(info)}: {error}") from None
    return deepcopy(values)


@lru_cache(maxsize=128)
def _read(path: Path, changed: int) -> Any:
    del changed  # a file that has changed is read again
    return read_yaml(path, ConfigError)


def described(info: PluginInfo) -> str:
    """A plugin for messages: kind, name, distribution and version."""
    return f"{info.kind} {info.name!r} ({info.distribution} {info.version})"


def canonical_names(values: Mapping[str, Any], within: str = registry.OWN) -> dict[str, Any]:
    """Settings with the names of plugins in their canonical spelling; unknown names are left for later checks.

    Args:
        values: Dotted keys.
        within: The distribution whose file holds them, see `registry.find`.
    """
    found = dict(values)
    for key, kind in NAMES.items():
        if isinstance(name := found.get(key), str):
            found[key] = registry.canonical(kind, name, within)
    for key in DATASETS:
        if isinstance(spec := found.get(key), str):
            head, _ = split_spec(spec)
            found[key] = registry.canonical("dataset", head, within) + spec[len(head) :]
    return found
