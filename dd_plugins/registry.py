"""Plugins by name: found in the installed metadata, imported when they are loaded."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from dd_plugins import names
from dd_plugins.errors import (
    AmbiguousPluginError,
    DDPluginsError,
    PluginLoadError,
    UnknownPluginError,
    UntrustedPluginError,
    is_out_of_memory,
)
from dd_plugins.installed import BASES, FILES, KINDS, MODULE, OWN, PluginInfo, damaged_distributions, list_plugins
from dd_plugins.sources import API_VERSION

__all__ = [
    "BASES",
    "FILES",
    "KINDS",
    "MODULE",
    "OWN",
    "PluginInfo",
    "add_trusted",
    "base_of",
    "canonical",
    "classes_named_in",
    "contract_problem",
    "create",
    "damaged_distributions",
    "find",
    "is_installed",
    "list_plugins",
    "load",
    "load_class",
    "trusted",
]

# A module:Class, alone or followed by the argument of a data set.
_CLASS = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*)(?::.*)?", re.DOTALL)
_trusted: set[str] = set()  # as torch.serialization keeps its safe globals


def add_trusted(specs: Iterable[str]) -> None:
    """Allows plugins that are named ``module:Class`` to be imported in this process.

    An installed plugin is always allowed: installing it was the user's decision. Code that is only named, possibly by a
    record, a configuration file or a stored set from somebody else, is not. The command calls this with what its own
    arguments name.

    Args:
        specs: ``module:Class`` each, as plugins are named; a data set's argument is ignored.
    """
    _trusted.update(match[1] for spec in specs if (match := _CLASS.fullmatch(spec)))


@contextmanager
def trusted(*specs: str) -> Iterator[None]:
    """A scope within which plugins that are named ``module:Class`` may be imported, as `add_trusted` allows them."""
    before = set(_trusted)
    add_trusted(specs)
    try:
        yield
    finally:
        _trusted.intersection_update(before)


def classes_named_in(arguments: Iterable[str]) -> list[str]:
    """Every ``module:Class`` among the arguments of a command: ``--param m:C``, ``--set network.name=m:C``, ...

    The argument of an installed data set, such as ``folder:pictures``, names no class.
    """
    words = [word for text in arguments for word in re.split(r"[\s,'\"{}\[\]]+", text.rpartition("=")[2])]
    found = [match[1] for word in words if (match := _CLASS.fullmatch(word))]
    return [spec for spec in found if not is_installed("dataset", spec.partition(":")[0])]


def find(kind: str, spec: str, within: str = OWN) -> PluginInfo:
    """Resolves ``name``, ``distribution/name`` or ``module:Class`` to a plugin, without importing it.

    Case is ignored where no name is equal to ``spec``; ``module:Class`` is taken as written. Built-in names are
    reserved: the short form of a name that is built in always means the built-in plugin.

    Args:
        kind: One of ``KINDS``.
        spec: The name.
        within: The distribution whose file uses the name; its own plugins come before those of others.

    Raises:
        UnknownPluginError: With near matches, the kind that has this name, and all installed names.
        AmbiguousPluginError: If several distributions offer the name; lists them.
    """
    found, installed = _candidates(kind, spec, within)
    if not found:
        others = {other: [info.spec for info in list_plugins(other)] for other in KINDS if other != kind}
        raise UnknownPluginError(names.unknown(kind, spec, sorted({info.spec for info in installed}), others))
    if len(found) > 1:
        choices = list(dict.fromkeys(f"{info.distribution}/{info.name}" for info in found))
        if len(choices) == 1:
            raise AmbiguousPluginError(f"{choices[0]} is offered as {' and '.join(info.value for info in found)}")
        raise AmbiguousPluginError(
            f"more than one distribution offers the {kind} {spec!r}: write {' or '.join(choices)}"
        )
    return found[0]


def _candidates(kind: str, spec: str, within: str) -> tuple[list[PluginInfo], list[PluginInfo]]:
    """The plugins that a name may mean, see `find`, and all that are installed."""
    if ":" in spec and kind not in FILES:
        return [PluginInfo(kind, spec.partition(":")[2], MODULE, "", spec)], []
    installed = list_plugins(kind)
    for distribution in dict.fromkeys((OWN, within)):
        if found := _matching(spec, [info for info in installed if info.distribution == distribution]):
            return found, installed
    return _matching(spec, installed), installed


def _matching(spec: str, infos: Sequence[PluginInfo]) -> list[PluginInfo]:
    by_name: dict[str, list[PluginInfo]] = {}
    for info in infos:
        by_name.setdefault(f"{info.distribution}/{info.name}" if "/" in spec else info.name, []).append(info)
    return [info for name in names.matches(spec, by_name) for info in by_name[name]]


def is_installed(kind: str, spec: str) -> bool:
    """Whether an installed plugin of this kind has this name, long or short, ignoring case, even if ambiguous."""
    installed = list_plugins(kind)
    both = [*(info.name for info in installed), *(f"{info.distribution}/{info.name}" for info in installed)]
    return bool(names.matches(spec, both))


def canonical(kind: str, spec: str, within: str = OWN) -> str:
    """The spelling in records and run ids: the ``spec`` of the plugin that `find` returns; other names unchanged."""
    found, _ = _candidates(kind, spec, within)
    return found[0].spec if len(found) == 1 else spec


def base_of(kind: str) -> type[Any]:
    """The base class of a kind; imports it."""
    module, _, name = BASES[kind].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def load(kind: str, spec: str) -> type[Any]:
    """Imports the class that a spec names and checks that it is a plugin of this kind.

    Raises:
        UntrustedPluginError: If ``spec`` is a ``module:Class`` that nothing but a file has named (see `add_trusted`).
        PluginLoadError: With the distribution, its version, the entry point and the original cause.
    """
    return _load(kind, spec) if ":" in spec else _load_installed(kind, spec, tuple(sys.path))


@lru_cache(maxsize=256)
def _load_installed(kind: str, spec: str, path: tuple[str, ...]) -> type[Any]:
    """Kept for each import path: networks are built again and again, and reading all metadata takes longer."""
    del path
    return _load(kind, spec)


def _load(kind: str, spec: str) -> type[Any]:
    info = find(kind, spec)
    who = f"{kind} {spec!r} ({info.distribution} {info.version}, {info.value})".replace(" ,", ",")
    loaded = _import(info.value, who, installed=info.distribution != MODULE)
    base = base_of(kind)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise PluginLoadError(f"{who}: expected a subclass of {base.__name__}, but found {loaded!r}")
    if problem := contract_problem(loaded):
        raise PluginLoadError(f"{who}: {problem}")
    return loaded


def create(kind: str, spec: str, *args: Any, **kwargs: Any) -> Any:
    """Loads a plugin and constructs it.

    Raises:
        PluginLoadError: If its constructor fails for a reason of its own; names the place in its source.
        DDPluginsError: Whatever it raises on purpose, and everything that `load` raises.
    """
    loaded = load(kind, spec)
    try:
        return loaded(*args, **kwargs)
    except (DDPluginsError, MemoryError):
        raise
    except Exception as error:  # whatever a third party's constructor raises
        if is_out_of_memory(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == getattr(sys.modules[loaded.__module__], "__file__", None)]
        frame = (own or frames)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        raise PluginLoadError(f"{kind} {spec!r} cannot be constructed: {_one_line(error)} ({place})") from error


def load_class(spec: str) -> type[Any]:
    """The class that ``module:Class`` names, of whatever kind.

    Raises:
        UntrustedPluginError: If nothing but a file has named it (see `add_trusted`).
        PluginLoadError: With the original cause.
    """
    loaded = _import(spec, spec, installed=False)
    if not isinstance(loaded, type):
        raise PluginLoadError(f"{spec}: expected a class, but found {loaded!r}")
    return loaded


def _import(value: str, who: str, installed: bool) -> Any:
    """The object that ``module:name`` names: the one place that imports a plugin, and that refuses to."""
    if not installed and not _CLASS.fullmatch(value):
        raise PluginLoadError(f"{who} cannot be imported: expected module:Class")
    if not installed and value not in _trusted:
        raise UntrustedPluginError(
            f"{who} is not an installed plugin, and a file alone does not decide what is imported; if you trust that "
            f"code, name it: --trust {value}"
        )
    module, _, path = value.partition(":")
    try:
        if not installed:
            _make_importable(module)
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (Exception, SystemExit) as error:  # whatever a third party's import raises
        raise PluginLoadError(f"{who} cannot be imported: {_one_line(error)}") from error
    return found


def _make_importable(module: str) -> None:
    """Puts the current folder at the end of the path, for a plugin under development that is in it."""
    top = module.partition(".")[0]
    if top in sys.modules:  # also __main__, which has no spec to be found by
        return
    if importlib.util.find_spec(top) is None and (Path(f"{top}.py").is_file() or Path(top).is_dir()):
        sys.path.append(str(Path.cwd()))


def contract_problem(loaded: type[Any]) -> str:
    """Why a class is no plugin of this release; empty if it is one."""
    from dd_plugins.api.config import PluginConfig  # pydantic takes a while to import

    version = vars(loaded).get("api_version")
    if version is None:
        return f"does not declare the API version that it was written for: api_version = {API_VERSION} in its class"
    if type(version) is not int or version != API_VERSION:
        return f"written for API version {version!r}, but this release offers {API_VERSION}"
    config = getattr(loaded, "Config", None)
    if not (isinstance(config, type) and issubclass(config, PluginConfig)):
        return f"expected its Config to be a subclass of PluginConfig, but found {config!r}"
    return ""


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
