"""Published numbers, with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from dd_plugins.api import ConfigError
from dd_plugins.api.reading import parse_yaml


@dataclass(frozen=True)
class Published:
    """A published accuracy (in percent) and where it stands."""

    percent: float
    source: str


def published(method: str, dataset: str, ipc: int) -> Published | None:
    """What was published for a method on a data set at an IPC, if anything."""
    table = _table()
    found = table["numbers"].get(method, {}).get(dataset, {}).get(str(ipc))
    return None if found is None else Published(float(found[0]), str(table["sources"][found[1]]))


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    text = (files("benchmark_adapters") / "references" / "published.yaml").read_text(encoding="utf-8")
    return dict(parse_yaml(text, "published.yaml", ConfigError))
