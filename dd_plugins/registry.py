"""Finds plugins by their entry points: metadata is read at every listing, a class is imported when it is named."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from dd_plugins import names
from dd_plugins.errors import AmbiguousPluginError, PluginLoadError, UnknownPluginError

KINDS = ("parameterization", "objective", "pruning", "dataset", "network", "benchmark")
API_VERSION = 1
OWN = "dd-plugins"
MODULE = "module"  # stands for the distribution of a plugin that is named as module:Class
# Where each kind's base class lives: looked up when a plugin is loaded, never at a listing.
BASES = {
    "parameterization": "dd_plugins.api:Parameterization",
    "objective": "dd_plugins.api:MatchingObjective",
    "pruning": "dd_plugins.api:PruningStrategy",
    "dataset": "dd_plugins.api:Dataset",
    "network": "dd_plugins.api:Network",
    "benchmark": "benchmark_adapters.base:Benchmark",
}


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
        return _source_of(module)

    def status(self) -> tuple[str, str]:
        """What a list shows, read from the source without importing it.

        Returns:
            ``("ok", one line about it)``, ``("broken", why)``, or ``("missing", how to install it)`` where the class
            says by ``needs = "module"`` that it is no use without one; the distribution has an extra of that name.
        """
        path = self.source()
        if path is None:
            return "broken", f"there is no module {self.value.partition(':')[0]}"
        status, line, needs = _describe(path, self.value.partition(":")[2])
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
    found = {
        PluginInfo(kind, e.name, _stated(e, "Name"), _stated(e, "Version"), _target(e))
        for e in _entry_points(f"dd_plugins.{kind}")
    }
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
    found: type[Any] = _import(BASES[kind])
    return found


def load(kind: str, spec: str) -> type[Any]:
    """Imports the class behind a spec and checks that it is what it claims to be.

    Raises:
        PluginLoadError: With the distribution, its version, the entry point and the original cause.
    """
    info = find(kind, spec)
    who = f"{kind} {spec!r} ({info.distribution} {info.version}, {info.value})".replace(" ,", ",")
    try:
        loaded = _import(info.value)
        base = base_of(kind)
    except (Exception, SystemExit) as error:  # whatever a third party's import raises
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginLoadError(f"{who} cannot be imported: {cause}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise PluginLoadError(f"{who}: expected a subclass of {base.__name__}, but found {loaded!r}")
    version = getattr(loaded, "api_version", None)
    if version != API_VERSION:
        raise PluginLoadError(f"{who}: written for API version {version}, but this release offers {API_VERSION}")
    return loaded


def load_class(spec: str) -> type[Any]:
    """The class behind ``module:Class``, of whatever kind.

    Raises:
        PluginLoadError: With the original cause.
    """
    try:
        loaded = _import(spec)
    except (Exception, SystemExit) as error:  # whatever a third party's import raises
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginLoadError(f"{spec} cannot be imported: {cause}") from error
    if not isinstance(loaded, type):
        raise PluginLoadError(f"{spec}: expected a class, but found {loaded!r}")
    return loaded


def _import(value: str) -> Any:
    module, _, names = value.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _target(entry: EntryPoint) -> str:
    """``module:Class``, without extras in brackets."""
    return entry.value.partition("[")[0].strip()


def _stated(entry: EntryPoint, key: str) -> str:
    """What the distribution's metadata say; a question mark where they are missing."""
    metadata = entry.dist.metadata if entry.dist else None
    return str(metadata[key]) if metadata and key in metadata else "?"


def _entry_points(group: str) -> list[EntryPoint]:
    return list(entry_points(group=group))


def _source_of(module: str) -> Path | None:
    top, *rest = module.split(".")
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
def _describe(path: Path, names: str) -> tuple[str, str, str]:
    """Status, one line, and the module that the class needs."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, OSError, ValueError) as error:
        return "broken", f"{type(error).__name__}: {error}", ""
    body = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    node = body.get(names.partition(".")[0])
    text = ast.get_docstring(node) if node else ast.get_docstring(tree)
    return "ok", (text or "").strip().partition("\n")[0], _needs(node)


def _needs(node: ast.ClassDef | None) -> str:
    for line in node.body if node else ():
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        named = any(isinstance(target, ast.Name) and target.id == "needs" for target in targets)
        if named and isinstance(value := getattr(line, "value", None), ast.Constant):
            return str(value.value)
    return ""
