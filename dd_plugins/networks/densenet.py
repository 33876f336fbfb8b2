"""DenseNet for small images, as cross-architecture tables use it: a 3x3 stem with stride 1, and no first pooling.

``densenet121`` has the growth rate of the ImageNet network; ``densenet-idc`` is the small one with growth rate 12 that
IDC scores CIFAR with.

Source: G. Huang, Z. Liu, L. van der Maaten and K. Q. Weinberger, "Densely Connected Convolutional Networks",
CVPR 2017 (arXiv 1608.06993). The layers are torchvision's. ``densenet-idc``: the sizes in the released code of
J.-H. Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022 (arXiv 2205.14959).

Deviations:
    - The stem is the small-image one (3x3, stride 1, no max-pool), but the blocks are those of the 121-layer ImageNet
      network. The papers that report it do not state a norm: batch is the default, instance an option.
    - Any channel count and image size: below 16 px, transitions that would leave less than 2x2 pixels do not pool,
      because instance norm turns a map of one pixel into a constant. The last map is averaged whole; IDC's window is
      4x4 (the same at 32x32).
    - Weights are drawn as the framework's layers draw them, as for all networks here; torchvision draws others.
    - Activations are out of place but for the last; values are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn
from torchvision.models import DenseNet

from dd_plugins.api.network import Network
from dd_plugins.networks import plain_layers
from dd_plugins.networks.classifier import FeatureClassifier


class DenseNet121(FeatureClassifier):
    """DenseNet121 for small images: growth rate 32, dense blocks of 6, 12, 24 and 16 layers."""

    api_version = 2
    growth: ClassVar[int] = 32

    class Config(Network.Config):
        """Settings of the DenseNet."""

        norm: Literal["instance", "batch"] = Field("batch", description="before each convolution")

    config: Config

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        stem = 2 * self.growth
        body = DenseNet(self.growth, (6, 12, 24, 16), stem, num_classes=num_classes)
        body.features.conv0 = nn.Conv2d(image_shape[0], stem, 3, padding=1, bias=False)
        body.features.pool0 = nn.Identity()
        plain_layers(body, self.config.norm)
        _keep_room(body.features, min(image_shape[1:]))
        self.classifier, body.classifier = body.classifier, nn.Identity()
        self.features = body


class DenseNetIDC(DenseNet121):
    """IDC's DenseNet: growth rate 12, no norm after the stem; 1,000,618 parameters at 3x32x32 and 10 classes."""

    api_version = 2
    growth = 12

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        layers = self.features.get_submodule("features")
        layers.norm0, layers.relu0 = nn.Identity(), nn.Identity()


def _keep_room(features: nn.Module, side: int) -> None:
    """Takes the pooling from the transitions that would leave less than 2 pixels of a map of ``side`` pixels."""
    for number in (1, 2, 3):
        if side < 4:
            features.get_submodule(f"transition{number}").pool = nn.Identity()
        else:
            side //= 2
