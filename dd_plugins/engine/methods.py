"""Named methods: parts with their published settings, read from the YAML files of any installed package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pydantic import ConfigDict, Field

from dd_plugins import registry
from dd_plugins.api import ConfigError, PluginConfig, PluginLoadError, parse_config
from dd_plugins.engine.files import canonical_names, described, file_values
from dd_plugins.registry import PluginInfo


class Applies(PluginConfig):
    """Where a block of settings applies; what is left out applies everywhere."""

    dataset: str | tuple[str, ...] | None = None
    ipc: int | tuple[int, ...] | None = None

    def holds(self, dataset: str, ipc: int) -> bool:
        """Whether it applies to this data set and IPC."""
        return _within(dataset, self.dataset) and _within(ipc, self.ipc)

    def ipcs(self) -> tuple[int, ...]:
        """The IPCs that it applies to; empty if it applies to all."""
        return self.ipc if isinstance(self.ipc, tuple) else () if self.ipc is None else (self.ipc,)


class Settings(PluginConfig):
    """A block of settings with the source of its values."""

    model_config = ConfigDict(**{**PluginConfig.model_config, "populate_by_name": True})

    source: str
    applies: Applies = Field(default_factory=Applies, alias="for")
    values: dict[str, Any] = Field(default_factory=dict, alias="set")
    per_ipc: dict[str, float] = Field({}, description="values that grow with the budget: times the IPC")

    def at(self, ipc: int) -> dict[str, Any]:
        """The values at a budget."""
        return {**self.values, **{key: value * ipc for key, value in self.per_ipc.items()}}


class Method(PluginConfig):
    """A method of the literature: parts, and settings for data sets and budgets; later blocks win."""

    name: str
    summary: str
    parameterization: str
    objective: str
    settings: tuple[Settings, ...] = ()

    def values(self, dataset: str, ipc: int) -> dict[str, Any]:
        """The settings of one cell as dotted keys."""
        parts = {"parameterization.name": self.parameterization, "objective.name": self.objective}
        return {**parts, **{key: value for key, (value, _) in self._merged(dataset, ipc).items()}}

    def borrowed(self, dataset: str, ipc: int) -> tuple[int, list[str]]:
        """The nearest IPC with settings, and the keys whose values are borrowed from it; none if this IPC has some."""
        borrowed = [key for key, (_, strange) in self._merged(dataset, ipc).items() if strange]
        return self._nearest(dataset, ipc), borrowed

    def _merged(self, dataset: str, ipc: int) -> dict[str, tuple[Any, bool]]:
        """The value of every key, and whether it is borrowed from another IPC; sizes of containers never are."""
        merged: dict[str, tuple[Any, bool]] = {}
        nearest = self._nearest(dataset, ipc)
        for block in self.settings:
            if block.applies.holds(dataset, ipc):
                merged.update({key: (value, False) for key, value in block.at(ipc).items()})
            elif block.applies.holds(dataset, nearest):
                lent = {
                    key: value for key, value in block.at(nearest).items() if not key.startswith("parameterization.")
                }
                merged.update({key: (value, True) for key, value in lent.items()})
        return merged

    def _nearest(self, dataset: str, ipc: int) -> int:
        """The IPC with settings of its own whose ratio to this one is the smallest; this one if none has settings."""
        blocks = [block.applies for block in self.settings if _within(dataset, block.applies.dataset)]
        known = [own for applies in blocks for own in applies.ipcs()]
        return min(known, key=lambda own: (max(own / ipc, ipc / own), own), default=ipc)


def method_names() -> list[str]:
    """The names of all installed methods."""
    return [info.spec for info in registry.list_plugins("method")]


def load_method(name: str) -> Method:
    """A method by name; case is ignored.

    Raises:
        UnknownPluginError: If there is no such method; suggests similar names, or the kind that has this name.
        PluginLoadError: If its file is damaged.
    """
    return _read(registry.find("method", name))


def _read(info: PluginInfo) -> Method:
    values = file_values(info)
    try:
        method = parse_config(Method, {**values, "name": info.spec}, "method")
    except ConfigError as error:
        raise PluginLoadError(f"{described(info)}: {error}") from None
    return method if info.distribution == registry.OWN else _with_own_names(method, info.distribution)


def _with_own_names(method: Method, distribution: str) -> Method:
    """The method with canonical names of plugins: those of its own distribution come before those of others."""

    def dataset(name: str) -> str:
        return registry.canonical("dataset", name, distribution)

    blocks = []
    for block in method.settings:
        known = block.applies.dataset
        names = dataset(known) if isinstance(known, str) else known and tuple(map(dataset, known))
        applies = block.applies.model_copy(update={"dataset": names})
        values = canonical_names(block.values, distribution)
        blocks.append(block.model_copy(update={"applies": applies, "values": values}))
    parts = {
        kind: registry.canonical(kind, getattr(method, kind), distribution)
        for kind in ("parameterization", "objective")
    }
    return method.model_copy(update={**parts, "settings": tuple(blocks)})


def choose_method(method: str | None, parameterization: object, objective: object) -> Method:
    """The named method, or the one whose parts come closest to the given ones.

    First the method of exactly these parts, then the objective's own, whose container is exchanged, then the one named
    like the container, then any with the container, then ``hmn``; the given parts replace its own afterwards. Methods
    of third parties are considered for parts of third parties alone, so that installing one changes no other run.
    """
    if method:
        return load_method(method)
    if parameterization in method_names() and objective is None:
        return load_method(str(parameterization))
    named = [part for part in (parameterization, objective) if isinstance(part, str)]  # others are refused later
    foreign = any("/" in part or ":" in part for part in named)

    def closeness(candidate: Method) -> tuple[bool, ...]:
        return (
            (candidate.parameterization, candidate.objective) == (parameterization, objective),
            candidate.objective == objective,
            candidate.name == objective,
            candidate.parameterization == parameterization,
            candidate.name == parameterization,
            candidate.name == "hmn",
        )

    return max(_readable(registry.OWN if not foreign else None), key=closeness)


def _readable(distribution: str | None) -> Iterator[Method]:
    """The methods of a distribution, or of all; damaged files are left out."""
    for info in registry.list_plugins("method"):
        if distribution in (None, info.distribution):
            with suppress(PluginLoadError):
                yield _read(info)


# The optimizer of a container with an objective that it was not published with: a learning rate belongs to the pair,
# and the steps of Adam do not depend on the scale of the loss.
EXCHANGED = {"optimizer.name": "adam", "optimizer.lr": 0.01, "optimizer.schedule": "cosine"}


def exchanged_container(method: Method, container: str | None, dataset: str, ipc: int) -> dict[str, Any]:
    """Settings for a container that replaces that of a method: its own sizes, and Adam.

    Its published learning rates are kept if they are those of Adam.

    Args:
        method: The method.
        container: The requested container, or None.
        dataset: The data set, and
        ipc: the budget, on which the container's own settings may depend.
    """
    if container in (None, method.parameterization):
        return {}
    home = load_method(str(container)).values(dataset, ipc) if container in method_names() else {}
    own = {key: value for key, value in home.items() if key.startswith("parameterization.")}
    if home.get("optimizer.name", "adam") != "adam":
        own = {key: value for key, value in own.items() if not key.endswith("lr")}
    return {"parameterization.name": container, **own, **EXCHANGED}


def _within(value: Any, allowed: Any) -> bool:
    return allowed is None or value == allowed or (isinstance(allowed, tuple) and value in allowed)
