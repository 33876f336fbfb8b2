"""What the source of a plugin says about it, read without importing it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

API_VERSION = 2
# What the file of each kind must say of itself.
REQUIRED = {"method": ("summary", "parameterization", "objective"), "protocol": ("summary",)}


def source_of(module: str) -> Path | None:
    """The file of a module, found without executing anything; None if there is none."""
    for base in _places(module):
        paths = (base,) if base.is_file() else (base.with_suffix(".py"), base / "__init__.py")
        for path in paths:
            if path.is_file():
                return path
    return None


def folder_of(package: str) -> Path | None:
    """The folder of a package, found without executing anything; None if there is none."""
    return next((place for place in _places(package) if place.is_dir()), None)


def _places(module: str) -> list[Path]:
    """Where a module or package is searched: the file of a top-level module, else paths without a suffix."""
    top, *rest = module.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):  # a record may name anything
        return []
    try:
        spec = importlib.util.find_spec(top)  # a top-level name: nothing is executed
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if not rest and spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
    return [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or ()]


@lru_cache(maxsize=256)
def describe_class(path: Path, names: str) -> tuple[str, str, Mapping[str, Any]]:
    """Status (``ok`` or ``broken``), one line (about it, or why it is broken), and the constants of the class.

    Args:
        path: A source file.
        names: The class in it.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, OSError, ValueError) as error:
        return "broken", f"{type(error).__name__}: {error}", {}
    body = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    node = body.get(names.partition(".")[0])
    text = ast.get_docstring(node) if node else ast.get_docstring(tree)
    constants = _constants(node) if node else {}
    if problem := _visible_problem(node, constants):
        return "broken", problem, constants
    return "ok", (text or "").strip().partition("\n")[0], constants


def describe_file(kind: str, path: Path) -> tuple[str, str]:
    """Status (``ok`` or ``broken``) and one line of a YAML file: its summary, or why it is broken."""
    try:
        content = read_file(path)
    except ValueError as error:
        return "broken", str(error)
    missing = [key for key in REQUIRED[kind] if not isinstance(content.get(key), str)]
    if missing:
        return "broken", f"expected a text as {' and '.join(missing)}"
    blocks = content.get("settings", []) if kind == "method" else []
    if not isinstance(blocks, list) or not all(map(_is_block, blocks)):
        return "broken", "expected settings to be a list of mappings with source, for, set and per_ipc"
    return "ok", " ".join(str(content["summary"]).split())


def _is_block(block: Any) -> bool:
    """Whether this can be a block of settings of a method."""
    if not isinstance(block, dict) or not isinstance(block.get("source"), str):
        return False
    return all(isinstance(block.get(key, {}), dict) for key in ("for", "set", "per_ipc"))


def read_file(path: Path) -> Mapping[str, Any]:
    """The content of a YAML file as it is written.

    Raises:
        ValueError: In one line, if it cannot be read or is not a mapping.
    """
    try:
        content = _parsed(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())) from None
    if not isinstance(content, dict):
        raise ValueError(f"expected a mapping, but got {type(content).__name__}")
    return content


@lru_cache(maxsize=256)
def _parsed(path: Path, changed: int) -> Any:
    import yaml

    del changed
    text = path.read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({error})") from None


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
