"""What is installed: plugins read from the metadata of distributions and from files, without importing any of them."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

from dd_plugins.sources import describe_class, describe_file, folder_of, source_of

OWN = "dd-plugins"
MODULE = "module"  # stands for the distribution of a plugin that is named as module:Class
# The base class of each kind whose plugins are classes: imported when a plugin is loaded, never for a list.
BASES = {
    "parameterization": "dd_plugins.api:Parameterization",
    "objective": "dd_plugins.api:MatchingObjective",
    "pruning": "dd_plugins.api:PruningStrategy",
    "score": "dd_plugins.api.pruning:Score",
    "selector": "dd_plugins.api.pruning:Selector",
    "dataset": "dd_plugins.api:Dataset",
    "network": "dd_plugins.api:Network",
    "prior": "dd_plugins.api:LayeredGenerator",
    "benchmark": "dd_plugins.api.benchmark:Benchmark",
    "format": "dd_plugins.api.format:Format",
}
FILES = ("method", "protocol")  # kinds whose plugins are YAML files
KINDS = (*BASES, *FILES)


@dataclass(frozen=True)
class PluginInfo:
    """One plugin, as the metadata of its distribution describes it.

    Attributes:
        kind: One of ``KINDS``.
        name: The name of the entry point; of a file its stem.
        distribution: The distribution that provides it, and its ``version``.
        value: ``module:Class``; of a file ``package:stem``, without the stem if the package holds no file.
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str

    @property
    def spec(self) -> str:
        """The unambiguous name: short for a built-in plugin, else ``distribution/name`` or ``module:Class``."""
        if self.distribution == OWN:
            return self.name
        return self.value if self.distribution == MODULE else f"{self.distribution}/{self.name}"

    def source(self) -> Path | None:
        """The YAML file, or the file that defines the class, found without importing it; None if there is none."""
        module, _, name = self.value.partition(":")
        if self.kind not in FILES:
            return source_of(module)
        folder = folder_of(module)
        return folder / f"{name}.yaml" if folder and name else None

    def status(self) -> tuple[str, str]:
        """The status in a list, read from the source without importing it.

        Returns:
            ``("ok", one line about it)``, ``("broken", why)``, or ``("missing", how to install it)`` if the class
            declares ``needs = "module"`` and that module is not installed; the distribution has an extra of that name.
        """
        module, _, name = self.value.partition(":")
        path = self.source()
        if path is None:
            what = f"no YAML file in {module}" if self.kind in FILES else f"there is no module {module}"
            return "broken", what
        if self.kind in FILES:
            return describe_file(self.kind, path)
        status, line, constants = describe_class(path, name)
        needs = constants.get("needs")
        if isinstance(needs, str) and importlib.util.find_spec(needs.partition(".")[0]) is None:
            return "missing", f"pip install '{self.distribution}[{needs}]'"
        return status, line

    def constants(self) -> Mapping[str, Any]:
        """The names that the class body assigns literal values to, read from the source without importing it."""
        module, _, name = self.value.partition(":")
        path = source_of(module)
        return describe_class(path, name)[2] if path else {}

    def record(self) -> dict[str, str]:
        """What a record holds of a plugin: distribution, version, entry point and the SHA-256 of its source."""
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
    read: dict[int, tuple[str, str]] = {}  # parsing the metadata of a distribution takes most of the time
    for entry in _entry_points(f"dd_plugins.{kind}"):
        if id(entry.dist) not in read:
            read[id(entry.dist)] = _metadata(entry, "Name"), _metadata(entry, "Version")
        value = entry.value.partition("[")[0].strip()  # without extras in brackets
        names = {entry.name: value}
        if kind in FILES and (stems := _stems(folder_of(value))):
            names = {stem: f"{value}:{stem}" for stem in stems}
        found.update(PluginInfo(kind, name, *read[id(entry.dist)], target) for name, target in names.items())
    return sorted(found, key=lambda info: (info.name, info.distribution != OWN, info.distribution, info.value))


def _stems(folder: Path | None) -> list[str]:
    """The names of the YAML files in a folder, hidden ones left out."""
    return [path.stem for path in folder.glob("*.yaml") if not path.name.startswith(".")] if folder else []


def _metadata(entry: EntryPoint, key: str) -> str:
    """A field of the distribution's metadata; a question mark if it is missing."""
    metadata = entry.dist.metadata if entry.dist else None
    return str(metadata[key]) if metadata and key in metadata else "?"


def _entry_points(group: str) -> list[EntryPoint]:
    try:
        return list(entry_points(group=group))
    except Exception:  # the metadata of one distribution are damaged: the others still count
        return [entry for entries, _ in _entry_points_by_distribution() for entry in entries if entry.group == group]


def damaged_distributions() -> list[tuple[str, str]]:
    """Installed distributions whose entry points cannot be read, each with the cause; their plugins are not listed."""
    try:
        entry_points(group=f"dd_plugins.{KINDS[0]}")
    except Exception:
        return [damage for _, damage in _entry_points_by_distribution() if damage is not None]
    return []


def _entry_points_by_distribution() -> Iterator[tuple[list[EntryPoint], tuple[str, str] | None]]:
    """The entry points of each distribution, the first of a name alone; or its path and why they cannot be read."""
    seen: set[str] = set()
    for distribution in distributions():
        place = str(getattr(distribution, "_path", "?"))
        try:
            name = str(distribution.metadata["Name"])
            if name not in seen:
                yield list(distribution.entry_points), None
            seen.add(name)
        except Exception as error:
            yield [], (place, " ".join(f"{type(error).__name__}: {error}".split()))
