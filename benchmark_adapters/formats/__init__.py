"""Formats in which sets leave and enter: this project's plain ones, and those that published sets come in."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dd_plugins.errors import UnknownPluginError, UsageError
from dd_plugins.names import canonical, choose, near, quoted, suggestion

if TYPE_CHECKING:
    from benchmark_adapters.formats.base import Format

# Where each format is; imported when it is named.
FORMATS = {
    "dc": "benchmark_adapters.formats.published:DC",
    "dc-bench": "benchmark_adapters.formats.dc_bench:DCBenchFormat",
    "ddranking": "benchmark_adapters.formats.published:DDRanking",
    "imagefolder": "benchmark_adapters.formats.imagefolder:ImageFolders",
    "mtt": "benchmark_adapters.formats.published:MTT",
    "parquet": "benchmark_adapters.formats.parquet:ParquetFormat",
    "pt": "benchmark_adapters.formats.pt:PtFormat",
}
EXPORTED = ("dc-bench", "imagefolder", "parquet", "pt")  # the others are read only


def load_format(name: str, settings: Mapping[str, Any] | None = None, *, to_export: bool = False) -> Format:
    """A format by name, ignoring case.

    Args:
        name: One of `FORMATS`.
        settings: Of the format.
        to_export: Whether a set is to be written in it.

    Raises:
        UnknownPluginError: If there is none; suggests similar names.
        UsageError: If it is read only, or has no such setting.
    """
    if to_export and canonical(name, FORMATS) not in EXPORTED:
        known = f"formats that export: {', '.join(EXPORTED)}"
        if (read_only := canonical(name, FORMATS)) in FORMATS:
            raise UsageError(f"the format {read_only} is for import only; {known}")
        hint = suggestion(near(name, EXPORTED))
        raise UnknownPluginError(f"unknown format {quoted(name)}{hint} ({known})")
    name = choose("format", name, FORMATS)
    module, _, cls = FORMATS[name].partition(":")
    try:
        made: Format = getattr(import_module(module), cls)(**(settings or {}))
    except TypeError:
        raise UsageError(f"the format {name} has no {', '.join(settings or {})}") from None
    return made
