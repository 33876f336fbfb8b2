"""A multi-layer perceptron on pixels, as cross-architecture tables use it: two hidden layers of 128.

Source: B. Zhao, K. R. Mopuri and H. Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021
(arXiv 2006.05929).

Deviations:
    - Any channel count and image size: the first layer has as many inputs as an image has numbers.
    - Activations are out of place; values are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from pydantic import Field
from torch import nn

from dd_plugins.api.network import Network
from dd_plugins.networks.classifier import FeatureClassifier


class MLP(FeatureClassifier):
    """Three linear layers; 411,146 parameters at 3x32x32 and 10 classes."""

    api_version = 2

    class Config(Network.Config):
        """Settings of the perceptron."""

        width: int = Field(128, ge=1, description="units of both hidden layers")

    config: Config

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        width = self.config.width
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(prod(image_shape), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.classifier = nn.Linear(width, num_classes)
