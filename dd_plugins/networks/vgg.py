"""VGG for small images, as cross-architecture tables use it: a norm after every convolution, one linear layer.

Source: K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015
(arXiv 1409.1556), in the small form of B. Zhao, K. R. Mopuri and H. Bilen, "Dataset Condensation with Gradient
Matching", ICLR 2021 (arXiv 2006.05929). The layers are torchvision's.

Deviations:
    - Any channel count and image size: the last map is average-pooled to the one pixel that 32x32 images give. Below
      32 px, max-pools that would leave a later convolution less than 2x2 pixels are left out, because instance norm
      turns a map of one pixel into a constant. Only 28x28 grey images get the wider first padding. At 3x32x32 and
      1x28x28 VGG11 is the original one.
    - The paper that reports VGG16 (HMN, arXiv 2310.07506) states neither its norm nor its classifier: they are VGG11's.
    - Activations are out of place; values are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from dd_plugins.api.network import Network
from dd_plugins.networks import plain_layers, stem_map, stem_padding
from dd_plugins.networks.classifier import FeatureClassifier


class VGG11(FeatureClassifier):
    """VGG11 for small images; 9,231,114 parameters at 3x32x32 and 10 classes."""

    api_version = 2
    layers: ClassVar[Sequence[int | str]] = cfgs["A"]  # channels of the convolutions; M: a max-pool

    class Config(Network.Config):
        """Settings of the VGG."""

        norm: Literal["instance", "batch"] = Field("instance", description="after each convolution")

    config: Config

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        body = make_layers(_with_room(self.layers, min(stem_map(image_shape))), batch_norm=True)
        body[0] = nn.Conv2d(image_shape[0], body[0].out_channels, 3, padding=stem_padding(image_shape, 3))
        plain_layers(body, self.config.norm)
        self.features = body.append(nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(int(self.layers[-2]), num_classes)


class VGG16(VGG11):
    """VGG16 for small images; 14,728,266 parameters at 3x32x32 and 10 classes."""

    api_version = 2
    layers = cfgs["D"]


def _with_room(layers: Sequence[int | str], side: int) -> list[int | str]:
    """The layers without the inner max-pools that a map of ``side`` pixels has no room for."""
    kept: list[int | str] = []
    *inner, last_pool = layers
    for layer in inner:
        if layer == "M" and side < 4:
            continue
        side = side // 2 if layer == "M" else side
        kept.append(layer)
    return [*kept, last_pool] if side >= 2 else kept
