"""The one evaluator: a frozen protocol, fresh networks, accuracy of the last epoch on the test set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

from pydantic import ConfigDict, Field

from benchmark_adapters import catalogue
from benchmark_adapters.base import Cell, ScoreContext
from dd_plugins import names, registry
from dd_plugins.api import ConfigError, DataSpec, PluginConfig, SyntheticSet, parse_config
from dd_plugins.api.memory import require_memory
from dd_plugins.api.reading import parse_yaml
from dd_plugins.networks import build_network, network_bytes
from dd_plugins.seeds import seed_for
from dd_plugins.training import TrainConfig, accuracy, networks_at_once, train_networks

NAME = "native"  # of its scores, beside those of other benchmarks
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
    """The names of all protocols that come with the package."""
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


def training_bytes(protocol: Protocol, data: DataSpec, networks: int) -> int:
    """Bytes of the weights, gradients and momentum of networks that are trained together."""
    one = network_bytes(protocol.network.name, data.image_shape, data.num_classes, protocol.network.settings)
    return networks * one * (3 if protocol.train.momentum else 2)


def evaluate(synthetic: SyntheticSet, protocol: Protocol, cell: Cell, context: ScoreContext) -> tuple[float, ...]:
    """Trains fresh networks on a synthetic set and tests each once, behind its last epoch.

    Trial k of every method starts from the same weights and sees batches in the same order, so that comparisons are
    paired. Trials are trained together where that pays: all of them on a GPU, as many as threads for small batches.

    Returns:
        Test accuracies, fractions between 0 and 1, one a trial.
    """
    known = dict(context.known)
    missing = (trial for trial in range(protocol.trials) if trial not in context.known)
    images, targets = synthetic.images.to(context.device), synthetic.targets.to(context.device)
    at_once = networks_at_once(context.real.spec, targets, protocol.train)
    together = min(at_once, protocol.trials - len(known))
    require_memory({f"{together:,} networks": training_bytes(protocol, synthetic.data, together)}, context.device)
    while group := list(islice(missing, at_once)):
        networks = [
            build_network(
                protocol.network.name,
                synthetic.data.image_shape,
                synthetic.data.num_classes,
                protocol.network.settings,
                seed=seed_for("eval", trial),
                device=context.device,
            )
            for trial in group
        ]

        def report(done: int, total: int, before: int = len(known), size: int = len(group)) -> None:
            if context.on_update:
                per_trial = total // size
                context.on_update(before * per_trial + done, protocol.trials * per_trial)

        train_networks(
            networks,
            images,
            targets,
            protocol.train,
            synthetic.data,
            seeds=[seed_for("eval", trial) for trial in group],
            budget_images=cell.ipc * synthetic.data.num_classes,
            on_update=report,
        )
        test = context.real.test if protocol.split == "test" else context.real.validation
        for trial, network in zip(group, networks, strict=True):
            known[trial] = accuracy(network, test.images, test.labels)
            if context.on_trial:
                context.on_trial(trial, known[trial])
    return tuple(known[trial] for trial in range(protocol.trials))
