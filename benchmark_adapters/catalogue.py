"""What comes with the package apart from plugins: methods, protocols and formats; read without importing torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from benchmark_adapters.formats import EXPORTED, FORMATS
from dd_plugins.sources import source_of

FOLDERS = {"method": "methods", "protocol": "protocols"}
KINDS = (*FOLDERS, "format")


@dataclass(frozen=True)
class Block:
    """Settings of a method with their source, and the data sets and budgets that they apply to."""

    values: tuple[tuple[str, Any], ...]
    applies: str
    source: str


def names(kind: str) -> list[str]:
    """All names of one of `KINDS`."""
    if kind == "format":
        return sorted(FORMATS)
    folder = files("benchmark_adapters") / FOLDERS[kind]
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def file_of(kind: str, name: str) -> Traversable:
    """The file of a method or protocol."""
    return files("benchmark_adapters") / FOLDERS[kind] / f"{name}.yaml"


@lru_cache(maxsize=64)
def raw(kind: str, name: str) -> Mapping[str, Any]:
    """The content of the file of a method or protocol, as it is written."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: Mapping[str, Any] = yaml.load(file_of(kind, name).read_text(encoding="utf-8"), loader)  # noqa: S506
    return found


def about(kind: str, name: str) -> str:
    """One line about it."""
    if kind != "format":
        return str(raw(kind, name)["summary"])
    module, _, cls = FORMATS[name].partition(":")
    path = source_of(module)
    classes = ast.parse(path.read_text(encoding="utf-8")).body if path else []
    found = next((each for each in classes if isinstance(each, ast.ClassDef) and each.name == cls), None)
    line = (ast.get_docstring(found) or "").partition("\n")[0] if found else ""
    return line if name in EXPORTED else f"{line} (import only)"


def blocks(method: str) -> Iterator[Block]:
    """The settings of a method in the order in which they apply; later ones win."""
    for block in raw("method", method).get("settings", ()):
        scaled = [(key, f"{value} x IPC") for key, value in block.get("per_ipc", {}).items()]
        applies = ", ".join(f"{key} {_listed(value)}" for key, value in block.get("for", {}).items())
        yield Block((*block.get("set", {}).items(), *scaled), applies or "all", " ".join(block["source"].split()))


def _listed(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)
