"""VGG11 for small images, as cross-architecture tables use it: a norm after every convolution, one linear layer.

Source: K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015
(arXiv 1409.1556), in the small form of B. Zhao, K. R. Mopuri and H. Bilen, "Dataset Condensation with Gradient
Matching", ICLR 2021 (arXiv 2006.05929). The layers are torchvision's.

Deviations:
    - Any channel count and image size: the last map is average-pooled to the one pixel that 32x32 images give. Below
      32 px, max-pools that would leave a later convolution less than 2x2 pixels are left out, because instance norm
      turns a map of one pixel into a constant. Only 28x28 grey images get the wider first padding. At 3x32x32 and
      1x28x28 the network is the original one.
    - Activations are out of place; values are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from dd_plugins.api.network import Network
from dd_plugins.networks import plain_layers, stem_map, stem_padding
from dd_plugins.networks.classifier import FeatureClassifier


class VGG11(FeatureClassifier):
    """VGG11 for small images; 9,231,114 parameters at 3x32x32 and 10 classes."""

    api_version = 1

    class Config(Network.Config):
        """Settings of VGG11."""

        norm: Literal["instance", "batch"] = Field("instance", description="after each convolution")

    config: Config

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        layers = make_layers(_layers_for(min(stem_map(image_shape))), batch_norm=True)
        layers[0] = nn.Conv2d(image_shape[0], layers[0].out_channels, 3, padding=stem_padding(image_shape, 3))
        plain_layers(layers, self.config.norm)
        self.features = layers.append(nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(cfgs["A"][-2], num_classes)


def _layers_for(side: int) -> list[int | str]:
    """Torchvision's list for VGG11, less the inner max-pools that a map of ``side`` pixels has no room for."""
    layers: list[int | str] = []
    *inner, last_pool = cfgs["A"]
    for layer in inner:
        if layer == "M" and side < 4:
            continue
        side = side // 2 if layer == "M" else side
        layers.append(layer)
    return [*layers, last_pool] if side >= 2 else layers
