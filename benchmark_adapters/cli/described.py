"""The settings of a plugin as a table, cached by the sources that they were read from."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from dd_plugins import __version__, registry
from dd_plugins.sources import read_file

if TYPE_CHECKING:
    from pydantic import BaseModel

PREFIXES = {
    "dataset": "data",
    "score": "pruning.score",
    "selector": "pruning.selector",
}  # what the settings of each kind begin with on the command line
LARGEST = 2**20  # bytes of a cache file
LIBRARIES = {"builtins", "abc", "typing", "pydantic"}


@dataclass(frozen=True)
class Described:
    """What ``dd-bench list KIND NAME`` shows: a line about it, and for each setting key, default and description."""

    about: str
    rows: list[list[str]]


def described(kind: str, name: str) -> Described:
    """The settings of a plugin or a protocol; imports it only where its sources changed since the last call.

    Args:
        kind: One of the registry's kinds, but not ``method``.
        name: The name in its canonical spelling.
    """
    identity, own = _identity(kind, name)
    file = _cache_file([__version__, sys.version, kind, *identity]) if own else None
    found = _cached(file, own) if file else None
    if found is None:
        found, packages = _read(kind, name)
        if file is not None:
            _keep(file, found, [*own, *_sources(packages - LIBRARIES)])
    return found


def _identity(kind: str, name: str) -> tuple[list[str], list[Path]]:
    """What identifies it, and the files that define it; no files if it cannot be cached."""
    info = registry.find(kind, name)
    files = [] if info.distribution == registry.MODULE else [info.source()]
    if kind == "protocol":
        files = list(_protocol_files(info))
    return [info.distribution, info.version, info.value], [path for path in files if path]


def _protocol_files(info: registry.PluginInfo) -> Iterator[Path]:
    """The file of a protocol and those of the protocols that it extends; none after one that is damaged."""
    seen: list[Path] = []
    while (path := info.source()) and path not in seen:
        yield path
        seen.append(path)
        with suppress(ValueError):
            if isinstance(base := read_file(path).get("extends"), str):
                info = registry.find("protocol", base, info.distribution)


def _read(kind: str, name: str) -> tuple[Described, set[str]]:
    """Imports it; returns also the packages that its settings come from."""
    import inspect

    if kind == "protocol":
        from dd_plugins.engine.protocols import Protocol, load_protocol

        made = load_protocol(name)
        prose = {f"{kind}.{key}" for key in ("name", "summary", "source")}
        rows = [list(row) for row in _settings(Protocol, kind, made) if row[0] not in prose]
        about = f"{made.summary} ({made.source})" if made.source else made.summary
        found = Described(about, rows)
        return found, _packages(Protocol, *Protocol.__mro__)
    cls = registry.load(kind, name)
    about = (inspect.getdoc(cls) or "").partition("\n\n")[0]
    rows = [list(row) for row in _settings(cls.Config, PREFIXES.get(kind, kind))]
    if kind == "dataset":
        from dd_plugins.datasets import COMMON_SETTINGS

        rows += [[f"data.{key}", written(value), what] for key, (value, what) in COMMON_SETTINGS.items()]
    bases = [base for model in _models(cls.Config) for base in model.__mro__]
    return Described(" ".join(about.split()), rows), _packages(cls, *bases)


def _packages(*classes: type[Any]) -> set[str]:
    return {cls.__module__.partition(".")[0] for cls in classes}


def _settings(model: type[BaseModel], prefix: str, made: BaseModel | None = None) -> Iterator[tuple[str, str, str]]:
    """Key, value and description of every setting, those of nested ones included; the default without ``made``."""
    from pydantic import BaseModel

    for key, field in model.model_fields.items():
        inner: Any = field.annotation
        value = getattr(made, key) if made is not None else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _settings(inner, f"{prefix}.{key}", value)
            continue
        if made is None and field.is_required():
            shown = "(must be given)"
        else:
            shown = written(value if made is not None else field.get_default(call_default_factory=True))
        choices = [str(choice) for choice in get_args(inner)] if get_origin(inner) is Literal else []
        about = [field.description or "", f"({', '.join(choices)})" if choices else ""]
        yield f"{prefix}.{key}", shown, " ".join(filter(None, about))


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and those nested in it."""
    from pydantic import BaseModel

    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _models(field.annotation)


def written(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


# ---- the cache -----------------------------------------------------------------------------------------------------


def _cache_file(identity: list[str]) -> Path | None:
    """Where it is cached; None if there is no home folder."""
    try:
        folder = Path(os.environ.get("DD_PLUGINS_CACHE") or "~/.cache/dd-plugins").expanduser()
    except RuntimeError:
        return None
    return folder / "listing" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]}.json"


def _cached(file: Path, own: list[Path]) -> Described | None:
    """What the file holds, if all sources are as they were; None also if the file is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if not file.is_file() or file.stat().st_size > LARGEST:
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        about, rows, sources = content["about"], content["rows"], content["sources"]
        if not {str(path) for path in own} <= set(sources):
            return None
        if any(digest != _digest(Path(path)) for path, digest in sources.items()):
            return None
        if all(isinstance(cell, str) for row in [[about], *rows] for cell in row) and all(len(r) == 3 for r in rows):
            return Described(about, rows)
    return None


def _keep(file: Path, found: Described, sources: Iterable[Path]) -> None:
    """Writes the cache; one that cannot be written is left alone."""
    from dd_plugins.api import write_atomically

    with suppress(OSError):
        digests = {str(path): _digest(path) for path in sources}
        write_atomically(file, json.dumps({**asdict(found), "sources": digests}).encode())


def _sources(packages: set[str]) -> Iterator[Path]:
    """The files of all modules that are loaded from these packages: any of them may set a default."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.partition(".")[0] in packages and isinstance(path, str) and path.endswith(".py"):
            yield Path(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
