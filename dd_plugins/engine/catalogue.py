"""Methods and protocols: YAML files, found and described without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

FOLDERS = {"method": "methods", "protocol": "protocols"}


@dataclass(frozen=True)
class Block:
    """Settings of a method with their source, and the data sets and budgets that they apply to."""

    values: tuple[tuple[str, Any], ...]
    applies: str
    source: str


def names(kind: str) -> list[str]:
    """The names of all methods or protocols, sorted."""
    folder = files("dd_plugins") / FOLDERS[kind]
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def file_of(kind: str, name: str) -> Traversable:
    """The file of a method or protocol."""
    return files("dd_plugins") / FOLDERS[kind] / f"{name}.yaml"


@lru_cache(maxsize=64)
def raw(kind: str, name: str) -> Mapping[str, Any]:
    """The content of the file of a method or protocol, as it is written."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: Mapping[str, Any] = yaml.load(file_of(kind, name).read_text(encoding="utf-8"), loader)  # noqa: S506
    return found


def about(kind: str, name: str) -> str:
    """One line about it."""
    return str(raw(kind, name)["summary"])


def blocks(method: str) -> Iterator[Block]:
    """The settings of a method in the order in which they apply; later ones win."""
    for block in raw("method", method).get("settings", ()):
        scaled = [(key, f"{value} x IPC") for key, value in block.get("per_ipc", {}).items()]
        applies = ", ".join(f"{key} {_listed(value)}" for key, value in block.get("for", {}).items())
        yield Block((*block.get("set", {}).items(), *scaled), applies or "all", " ".join(block["source"].split()))


def _listed(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)
