"""Protocols: the frozen settings of an evaluation, read from the YAML files of any installed package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from dd_plugins import registry
from dd_plugins.api import ConfigError, PluginConfig, PluginLoadError, parse_config
from dd_plugins.engine.files import described, file_values
from dd_plugins.engine.keys import flatten, nest
from dd_plugins.registry import PluginInfo
from dd_plugins.training import TrainConfig

# Part of every protocol's hash; increased with any change of evaluator, training or networks that changes a result.
VERSION = 1
QUICK = ("digits",)  # data sets whose default protocol is the short one
PROSE = ("name", "summary", "source")


class PartConfig(PluginConfig):
    """A plugin by name, with its settings beside it: ``{name: convnet, width: 32}``."""

    model_config = ConfigDict(**{**PluginConfig.model_config, "extra": "allow"})

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings without the name."""
        return dict(self.model_extra or {})


class Protocol(PluginConfig):
    """How synthetic sets are scored; every result is stored with the protocol's name and hash."""

    name: str
    summary: str = ""
    source: str = ""
    network: PartConfig = Field(default_factory=lambda: PartConfig(name="convnet"))
    train: TrainConfig = TrainConfig()
    split: Literal["test", "validation"] = Field(
        "test", description="images that accuracy is measured on; whatever is chosen is chosen on validation"
    )
    trials: int = Field(5, ge=1, le=1_000_000, description="fresh networks trained on the set")

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits of everything that decides the result of a trial: network, training and split."""
        cls = registry.load("network", self.network.name)
        network = parse_config(cls.Config, self.network.settings, "protocol.network").model_dump(mode="json")
        content = {
            "version": VERSION,
            "network": {"name": self.network.name, **network},
            "train": self.train.model_dump(mode="json"),
            "split": self.split,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def protocol_names() -> list[str]:
    """The names of all installed protocols."""
    return [info.spec for info in registry.list_plugins("protocol")]


def protocol_values(name: str) -> dict[str, Any]:
    """The values in a protocol's file, with those of the protocol that it extends.

    Raises:
        UnknownPluginError: If there is no such protocol; suggests similar names.
        PluginLoadError: If its file is damaged, or it extends itself.
    """
    return _values(registry.find("protocol", name))


def _values(info: PluginInfo, extended_by: tuple[PluginInfo, ...] = ()) -> dict[str, Any]:
    if info in extended_by:
        raise PluginLoadError(f"{described(info)} extends itself")
    values = file_values(info)
    if isinstance(network := values.get("network"), dict) and isinstance(network.get("name"), str):
        network["name"] = registry.canonical("network", network["name"], info.distribution)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise PluginLoadError(f"{described(info)}: extends = {base!r}: expected the name of a protocol")
    inherited = _values(registry.find("protocol", base, info.distribution), (*extended_by, info))
    train = values.get("train", {})
    return {
        **inherited,
        **values,
        "train": {**inherited.get("train", {}), **train} if isinstance(train, dict) else train,
    }


def load_protocol(name: str) -> Protocol:
    """A protocol by name; case is ignored.

    Raises:
        UnknownPluginError: If there is no such protocol; suggests similar names.
        PluginLoadError: If its file is damaged.
    """
    info = registry.find("protocol", name)
    try:
        return parse_config(Protocol, {**_values(info), "name": info.spec}, "protocol")
    except ConfigError as error:
        raise PluginLoadError(f"{described(info)}: {error}") from None


def default_protocol(known: str) -> str:
    """The name of the protocol for a data set when none is chosen: the short one for the digits, else ``dsa``."""
    return "quick" if known in QUICK else "dsa"


def protocol_with(name: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol by name with single values replaced; its name then lists what differs.

    Args:
        name: The protocol's; what follows a bracket is ignored.
        changed: Dotted keys: ``{"train.epochs": 300}``.

    Returns:
        Nested values.

    Raises:
        UnknownPluginError: If there is no such protocol.
        ConfigError: If a value is not allowed.
    """
    base = flatten(load_protocol(name.partition("[")[0]).model_dump(mode="json"))
    if changed.get("network.name", base["network.name"]) != base["network.name"]:
        base = {key: value for key, value in base.items() if not key.startswith("network.")}
    merged = {**base, **changed}
    made = flatten(parse_config(Protocol, nest(merged), "protocol").model_dump(mode="json"))
    differing = {key: value for key, value in made.items() if base.get(key) != value and key not in PROSE}
    if differing:
        listed = ",".join(f"{key.removeprefix('train.')}={value}" for key, value in sorted(differing.items()))
        merged["name"] = f"{base['name']}[{listed}]"
    return nest(merged)


def resolve_protocol(name: str, changed: Mapping[str, Any]) -> Protocol:
    """The same as a `Protocol`; plugins are named in their canonical spelling, and settings of its network checked.

    Raises:
        UnknownPluginError: If there is no such protocol or network.
        ConfigError: If a value is not allowed.
    """
    given = dict(changed)
    if isinstance(network := given.get("network.name"), str):
        given["network.name"] = registry.canonical("network", network)
    protocol = parse_config(Protocol, protocol_with(name, given), "protocol")
    network_class = registry.load("network", protocol.network.name)
    parse_config(network_class.Config, protocol.network.settings, "protocol.network")
    return protocol
