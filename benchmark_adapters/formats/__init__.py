"""Formats in which sets leave and enter: this project's plain ones, and those that published sets come in."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from benchmark_adapters.formats.base import Format
from dd_plugins.api import UsageError

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


def load_format(name: str, settings: Mapping[str, Any] | None = None) -> Format:
    """A format by name.

    Raises:
        UsageError: If there is none; names all there are.
    """
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}; there are {', '.join(FORMATS)}")
    module, _, cls = FORMATS[name].partition(":")
    try:
        made: Format = getattr(import_module(module), cls)(**(settings or {}))
    except TypeError:
        raise UsageError(f"the format {name} has no {', '.join(settings or {})}") from None
    return made
