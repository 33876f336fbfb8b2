"""What can be named apart from plugin classes: methods, protocols and formats; read without importing torch."""

from __future__ import annotations

import ast

from benchmark_adapters.formats import EXPORTED, FORMATS
from dd_plugins.engine import catalogue
from dd_plugins.sources import source_of

KINDS = (*catalogue.FOLDERS, "format")


def names(kind: str) -> list[str]:
    """All names of one of `KINDS`, sorted."""
    return sorted(FORMATS) if kind == "format" else catalogue.names(kind)


def about(kind: str, name: str) -> str:
    """One line about it."""
    if kind != "format":
        return catalogue.about(kind, name)
    module, _, cls = FORMATS[name].partition(":")
    path = source_of(module)
    classes = ast.parse(path.read_text(encoding="utf-8")).body if path else []
    found = next((each for each in classes if isinstance(each, ast.ClassDef) and each.name == cls), None)
    line = (ast.get_docstring(found) or "").partition("\n")[0] if found else ""
    return line if name in EXPORTED else f"{line} (import only)"
