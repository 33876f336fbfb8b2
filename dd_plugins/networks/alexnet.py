"""AlexNet for small images, as cross-architecture tables use it: five convolutions, no dropout, no norm by default.

Source: A. Krizhevsky, I. Sutskever and G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NeurIPS 2012, in the small form of B. Zhao, K. R. Mopuri and H. Bilen, "Dataset Condensation with Gradient Matching",
ICLR 2021 (arXiv 2006.05929): kernels of 5 and 3, three max-pools, one linear layer.

Deviations:
    - Any channel count and image size: the last map is average-pooled to the 4x4 that 32x32 images give (8x8 digits:
      repeated up to it), and a max-pool is left out where less than a pixel would remain. Only 28x28 grey images get
      the wider first padding. At 3x32x32 and 1x28x28 the network is the original one.
    - Activations are out of place; values are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import nn

from dd_plugins.api.network import Network
from dd_plugins.networks import stem_map, stem_padding
from dd_plugins.networks.classifier import FeatureClassifier

LAYERS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))  # channels, kernel, pool
LAST_MAP = (4, 4)


class AlexNet(FeatureClassifier):
    """AlexNet for small images; 1,872,202 parameters at 3x32x32 and 10 classes."""

    api_version = 2

    class Config(Network.Config):
        """Settings of AlexNet."""

        norm: Literal["none", "batch"] = Field("none", description="after each convolution")

    config: Config

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        channels, padding = image_shape[0], stem_padding(image_shape, LAYERS[0][1])
        height, width = stem_map(image_shape)
        layers: list[nn.Module] = []
        for index, (out_channels, kernel, pool) in enumerate(LAYERS):
            layers.append(nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2 if index else padding))
            layers += [nn.BatchNorm2d(out_channels)] if self.config.norm == "batch" else []
            layers.append(nn.ReLU())
            if pool and min(height, width) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            channels = out_channels
        if (height, width) != LAST_MAP:  # where it changes nothing it is left out: on a GPU it is not deterministic
            layers.append(nn.AdaptiveAvgPool2d(LAST_MAP))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * LAST_MAP[0] * LAST_MAP[1], num_classes)
