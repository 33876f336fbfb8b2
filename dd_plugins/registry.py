"""Finds plugins by their entry points: metadata is read at every listing, a class is imported when it is named."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions, entry_points
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
from dd_plugins.sources import API_VERSION, describe, source_of

KINDS = ("parameterization", "objective", "pruning", "dataset", "network", "benchmark")
OWN = "dd-plugins"
MODULE = "module"  # stands for the distribution of a plugin that is named as module:Class
# Where each kind's base class lives: looked up when a plugin is loaded, never at a listing.
BASES = {
    "parameterization": "dd_plugins.api:Parameterization",
    "objective": "dd_plugins.api:MatchingObjective",
    "pruning": "dd_plugins.api:PruningStrategy",
    "dataset": "dd_plugins.api:Dataset",
    "network": "dd_plugins.api:Network",
    "benchmark": "dd_plugins.api.benchmark:Benchmark",
}


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


@dataclass(frozen=True)
class PluginInfo:
    """What the metadata of an installed distribution says about one plugin.

    Attributes:
        kind: One of ``KINDS``.
        name: The entry point's name.
        distribution: The package that offers it, and its ``version``.
        value: ``module:Class``.
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str

    @property
    def spec(self) -> str:
        """The name that always means this plugin: short for a built-in, ``distribution/name``, or ``module:Class``."""
        if self.distribution == OWN:
            return self.name
        return self.value if self.distribution == MODULE else f"{self.distribution}/{self.name}"

    def source(self) -> Path | None:
        """The file that defines the class, found without importing it; None if there is none."""
        module = self.value.partition(":")[0]
        return source_of(module)

    def status(self) -> tuple[str, str]:
        """What a list shows, read from the source without importing it.

        Returns:
            ``("ok", one line about it)``, ``("broken", why)``, or ``("missing", how to install it)`` where the class
            says by ``needs = "module"`` that it is no use without one; the distribution has an extra of that name.
        """
        path = self.source()
        if path is None:
            return "broken", f"there is no module {self.value.partition(':')[0]}"
        status, line, needs = describe(path, self.value.partition(":")[2])
        if needs and importlib.util.find_spec(needs.partition(".")[0]) is None:
            return "missing", f"pip install '{self.distribution}[{needs}]'"
        return status, line

    def record(self) -> dict[str, str]:
        """What a run's record keeps of a plugin: distribution, version, entry point and the hash of its source."""
        path = self.source()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path else ""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "entry_point": self.value,
            "sha256": digest,
        }


def list_plugins(kind: str) -> list[PluginInfo]:
    """All plugins of a kind, sorted by name; imports none of them."""
    found: set[PluginInfo] = set()
    read: dict[int, tuple[str, str]] = {}  # parsing the metadata of a distribution takes longer than all else
    for entry in _entry_points(f"dd_plugins.{kind}"):
        if id(entry.dist) not in read:
            read[id(entry.dist)] = _stated(entry, "Name"), _stated(entry, "Version")
        found.add(PluginInfo(kind, entry.name, *read[id(entry.dist)], _target(entry)))
    return sorted(found, key=lambda info: (info.name, info.distribution != OWN, info.distribution))


def find(kind: str, spec: str) -> PluginInfo:
    """Resolves ``name``, ``distribution/name`` or ``module:Class`` to a plugin, without importing it.

    Case is ignored where no name is equal to ``spec``; ``module:Class`` is taken as written. Built-in names are
    reserved: the short form of a name that is built in means the built-in, always.

    Raises:
        UnknownPluginError: With near matches, the kind that has this name, and all installed names.
        AmbiguousPluginError: If two distributions offer the name; names both.
    """
    if ":" in spec:
        return PluginInfo(kind, spec.partition(":")[2], MODULE, "", spec)
    installed = list_plugins(kind)
    own = [info for info in installed if info.distribution == OWN]
    matching = _matching(spec, own) or _matching(spec, installed)
    if not matching:
        others = {other: [info.spec for info in list_plugins(other)] for other in KINDS if other != kind}
        raise UnknownPluginError(names.unknown(kind, spec, sorted({info.spec for info in installed}), others))
    if len(matching) > 1:
        choices = " or ".join(f"{info.distribution}/{info.name}" for info in matching)
        raise AmbiguousPluginError(f"more than one distribution offers the {kind} {spec!r}: write {choices}")
    return matching[0]


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


def canonical(kind: str, spec: str) -> str:
    """The spelling that records and run ids hold: a plugin's ``spec``; what no plugin has is returned as it is."""
    if ":" in spec:
        return spec
    try:
        return find(kind, spec).spec
    except (UnknownPluginError, AmbiguousPluginError):
        return spec


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


def _target(entry: EntryPoint) -> str:
    """``module:Class``, without extras in brackets."""
    return entry.value.partition("[")[0].strip()


def _stated(entry: EntryPoint, key: str) -> str:
    """What the distribution's metadata say; a question mark where they are missing."""
    metadata = entry.dist.metadata if entry.dist else None
    return str(metadata[key]) if metadata and key in metadata else "?"


def _entry_points(group: str) -> list[EntryPoint]:
    try:
        return list(entry_points(group=group))
    except Exception:  # one distribution's metadata are damaged: the others still count
        return [entry for entries, _ in _entry_points_by_distribution() for entry in entries if entry.group == group]


def damaged_distributions() -> list[tuple[str, str]]:
    """Installed distributions whose entry points cannot be read, each with the cause; their plugins are not listed."""
    try:
        entry_points(group=f"dd_plugins.{KINDS[0]}")
    except Exception:
        return [damage for _, damage in _entry_points_by_distribution() if damage is not None]
    return []


def _entry_points_by_distribution() -> Iterator[tuple[list[EntryPoint], tuple[str, str] | None]]:
    """The entry points of each distribution, the first of a name alone; or its place and why they cannot be read."""
    seen: set[str] = set()
    for distribution in distributions():
        place = str(getattr(distribution, "_path", "?"))
        try:
            name = str(distribution.metadata["Name"])
            if name not in seen:
                yield list(distribution.entry_points), None
            seen.add(name)
        except Exception as error:
            yield [], (place, _one_line(error))
