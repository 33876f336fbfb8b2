"""Networks as a configuration names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dd_plugins.api import DataSpec, Network, RealData
from dd_plugins.engine.protocols import PartConfig
from dd_plugins.networks import build_network


@dataclass(frozen=True)
class NetworkFactory:
    """Makes freshly initialised networks of one architecture.

    Attributes:
        name: The plugin, with its ``settings``.
        data: Gives the shape of images and the number of classes.
        device: Where networks are created.
    """

    name: str
    settings: Mapping[str, Any]
    data: DataSpec
    device: torch.device

    @classmethod
    def of(cls, config: PartConfig, real: RealData, device: torch.device | None = None) -> NetworkFactory:
        """From a part of a configuration; on the data's device by default."""
        return cls(config.name, config.settings, real.spec, device or real.device)

    def __call__(self, seed: int) -> Network:
        """A network whose weights depend on ``seed`` alone."""
        shape, classes = self.data.image_shape, self.data.num_classes
        return build_network(self.name, shape, classes, dict(self.settings), seed=seed, device=self.device)

    def describe(self) -> dict[str, Any]:
        """Name and settings, which tell apart what is cached for one network or another."""
        return {"name": self.name, **self.settings}

    def on_cpu(self) -> Network:
        """A network on the CPU, for checks."""
        return NetworkFactory(self.name, self.settings, self.data, torch.device("cpu"))(0)
