"""Protocols: frozen settings of an evaluation, read from the YAML files of any package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pydantic import ConfigDict, Field

from dd_plugins import names, registry
from dd_plugins.api import ConfigError, PluginConfig, parse_config
from dd_plugins.api.reading import parse_yaml
from dd_plugins.engine import catalogue
from dd_plugins.training import TrainConfig

# Part of every protocol's hash; to be raised with any change of evaluator, training or networks that moves a number.
VERSION = 1


class PartConfig(PluginConfig):
    """A plugin by name, with its settings beside it: ``{name: convnet, width: 32}``."""

    model_config = ConfigDict(**{**PluginConfig.model_config, "extra": "allow"})

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings without the name."""
        return dict(self.model_extra or {})


class Protocol(PluginConfig):
    """How synthetic sets are scored; every number carries the protocol's name and hash."""

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
        """Ten hexadecimal digits of what decides a trial's number: network and training, defaults included."""
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
    """The names of all protocols."""
    return catalogue.names("protocol")


@lru_cache(maxsize=32)
def protocol_values(name: str) -> Mapping[str, Any]:
    """The raw values of a protocol file, with those of the protocol that it extends.

    Raises:
        UnknownPluginError: If there is no such protocol; suggests similar names, ignoring case.
    """
    name = names.choose("protocol", name, protocol_names())
    text = catalogue.file_of("protocol", name).read_text(encoding="utf-8")
    values: dict[str, Any] = parse_yaml(text, f"protocol {name}", ConfigError)
    base = values.pop("extends", None)
    if base is None:
        return values
    inherited = protocol_values(base)
    return {**inherited, **values, "train": {**inherited.get("train", {}), **values.get("train", {})}}


def load_protocol(name: str) -> Protocol:
    """A protocol by name."""
    return parse_config(Protocol, protocol_values(name), f"protocol {name}")
