"""What the source of a plugin says about it, read without importing it."""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

API_VERSION = 2


def source_of(module: str) -> Path | None:
    """The file of a module, found without executing anything; None if there is none."""
    top, *rest = module.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):  # a record may name anything
        return None
    try:
        spec = importlib.util.find_spec(top)  # a top-level name: nothing is executed
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder).joinpath(*rest)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


@lru_cache(maxsize=256)
def describe(path: Path, names: str) -> tuple[str, str, str]:
    """Status (``ok`` or ``broken``), one line (about it, or why it is broken), and the module that the class needs.

    Args:
        path: A source file.
        names: The class in it.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, OSError, ValueError) as error:
        return "broken", f"{type(error).__name__}: {error}", ""
    body = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    node = body.get(names.partition(".")[0])
    text = ast.get_docstring(node) if node else ast.get_docstring(tree)
    constants = _constants(node) if node else {}
    if problem := _visible_problem(node, constants):
        return "broken", problem, ""
    return "ok", (text or "").strip().partition("\n")[0], str(constants.get("needs", ""))


def _visible_problem(node: ast.ClassDef | None, constants: dict[str, Any]) -> str:
    """What `registry.load` would say, as far as the source alone shows it; empty if it shows nothing."""
    if node is None:  # defined in another file
        return ""
    if "api_version" not in constants:
        return f"declares no api_version (this release offers {API_VERSION})"
    version = constants["api_version"]
    if type(version) is not int or version != API_VERSION:
        return f"written for API version {version!r}, but this release offers {API_VERSION}"
    return f"Config = {constants['Config']!r} is no class" if "Config" in constants else ""


def _constants(node: ast.ClassDef) -> dict[str, Any]:
    """The names that a class body assigns literal values to."""
    found: dict[str, Any] = {}
    for line in node.body:
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        if isinstance(value := getattr(line, "value", None), ast.Constant):
            found.update({target.id: value.value for target in targets if isinstance(target, ast.Name)})
    return found
