"""Formats of other projects, in which sets are exported and imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dd_plugins import registry
from dd_plugins.errors import UnknownPluginError, UsageError
from dd_plugins.names import near, quoted, suggestion

if TYPE_CHECKING:
    from dd_plugins.api.format import Format


def load_format(name: str, settings: Mapping[str, Any] | None = None, *, to_export: bool = False) -> Format:
    """A format by name; case is ignored.

    Args:
        name: The name of a plugin.
        settings: Of the format.
        to_export: Whether a set will be written in it.

    Raises:
        UnknownPluginError: If there is no such format; suggests similar names.
        UsageError: If it cannot export, or has no such setting.
    """
    if to_export:
        _check_exports(name)
    made: Format = registry.create("format", name, settings)
    return made


def exporting() -> list[str]:
    """The names of all installed formats that export; imports none of them."""
    return [info.spec for info in registry.list_plugins("format") if not info.constants().get("import_only")]


def _check_exports(name: str) -> None:
    """Refuses a format that does not export, before it is imported."""
    names, spec = exporting(), registry.canonical("format", name)
    known = f"formats that export: {', '.join(names)}"
    if ":" in spec or spec in names:
        return
    if registry.is_installed("format", name):
        raise UsageError(f"the format {spec} is for import only; {known}")
    raise UnknownPluginError(f"unknown format {quoted(name)}{suggestion(near(name, names))} ({known})")
