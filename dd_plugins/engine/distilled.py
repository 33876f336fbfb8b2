"""A stored synthetic set, rebuilt from its file alone."""

from __future__ import annotations

from pathlib import Path

from dd_plugins import registry
from dd_plugins.api import Parameterization, read_stored


def load_stored(source: Path | bytes) -> Parameterization:
    """Rebuilds a container from its file alone, finding its class by the name in the file.

    Args:
        source: The file, or its bytes.

    Raises:
        SyntheticFileError: If the file is damaged.
        UntrustedPluginError: If it names a ``module:Class`` that the user has not named.
    """
    header, _ = read_stored(source)
    loaded: Parameterization = registry.load("parameterization", header.plugin).load(source)
    return loaded
