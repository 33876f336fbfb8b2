"""DenseNet121 for small images, as cross-architecture tables use it: a 3x3 stem with stride 1, and no first pooling.

Source: G. Huang, Z. Liu, L. van der Maaten and K. Q. Weinberger, "Densely Connected Convolutional Networks",
CVPR 2017 (arXiv 1608.06993). The layers are torchvision's.

Deviations:
    - The stem is the small-image one (3x3, stride 1, no max-pool), but the blocks are those of the 121-layer ImageNet
      network. The papers that report it do not state a norm: batch is the default, instance an option.
    - Any channel count and image size: below 16 px, transitions that would leave less than 2x2 pixels do not pool,
      because instance norm turns a map of one pixel into a constant.
    - Weights are drawn as the framework's layers draw them, as for all networks here; torchvision draws others.
    - Activations are out of place but for the last; values are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import nn
from torchvision.models import DenseNet

from dd_plugins.api.network import Network
from dd_plugins.networks import plain_layers
from dd_plugins.networks.classifier import FeatureClassifier


class DenseNet121(FeatureClassifier):
    """DenseNet121 for small images: growth rate 32, dense blocks of 6, 12, 24 and 16 layers."""

    api_version = 1

    class Config(Network.Config):
        """Settings of DenseNet121."""

        norm: Literal["instance", "batch"] = Field("batch", description="before each convolution")

    config: Config

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        body = DenseNet(32, (6, 12, 24, 16), 64, num_classes=num_classes)
        body.features.conv0 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
        body.features.pool0 = nn.Identity()
        plain_layers(body, self.config.norm)
        _keep_room(body.features, min(image_shape[1:]))
        self.classifier, body.classifier = body.classifier, nn.Identity()
        self.features = body


def _keep_room(features: nn.Module, side: int) -> None:
    """Takes the pooling from the transitions that would leave less than 2 pixels of a map of ``side`` pixels."""
    for number in (1, 2, 3):
        if side < 4:
            features.get_submodule(f"transition{number}").pool = nn.Identity()
        else:
            side //= 2
