"""ResNet18 for small images, as cross-architecture tables use it: a 3x3 stem with stride 1, and no first pooling.

``resnet18-ap`` has average pools in the place of strides: behind the first activation of a block, and before the norm
of its shortcut; and its classifier sees the whole last map.

Source: K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016
(arXiv 1512.03385), in the small form of B. Zhao, K. R. Mopuri and H. Bilen, "Dataset Condensation with Gradient
Matching", ICLR 2021 (arXiv 2006.05929). The layers are torchvision's.

Deviations:
    - Any channel count and image size: the last map is average-pooled whole, where the original's window is 4x4 (the
      same at 32x32 and 28x28); with average pools the classifier is as wide as the last map instead. Below 9 px, stages
      that would leave less than 2x2 pixels keep their map's size, because instance norm turns a map of one pixel into a
      constant.
    - Weights are drawn as the framework's layers draw them, as in the original; torchvision's ResNet draws others.
    - Activations are out of place; values are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from dd_plugins.api.network import Network
from dd_plugins.networks import plain_layers
from dd_plugins.networks.classifier import FeatureClassifier


class ResNet18(FeatureClassifier):
    """ResNet18 for small images; 11,173,962 parameters at 3x32x32 and 10 classes."""

    api_version = 2

    class Config(Network.Config):
        """Settings of ResNet18."""

        norm: Literal["instance", "batch"] = Field("instance", description="after each convolution")

    config: Config
    features: ResNet

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        body = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        body.conv1 = nn.Conv2d(image_shape[0], body.conv1.out_channels, 3, padding=1, bias=False)
        body.maxpool = nn.Identity()
        plain_layers(body, self.config.norm)
        _keep_room(body, min(image_shape[1:]))
        self.classifier, body.fc = body.fc, nn.Identity()
        self.features = body


class ResNet18AP(ResNet18):
    """ResNet18 with average pools in the place of strides; 11,250,762 parameters at 3x32x32 and 10 classes."""

    api_version = 2

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        height, width = image_shape[1:]
        for stage in (self.features.layer2, self.features.layer3, self.features.layer4):
            block, (shortcut, norm) = stage[0], stage[0].downsample
            block.conv1.stride = shortcut.stride = (1, 1)
            if min(height, width) < 4:  # as for resnet18: no map of one pixel
                continue
            block.conv2 = nn.Sequential(nn.AvgPool2d(2), block.conv2)
            block.downsample = nn.Sequential(shortcut, nn.AvgPool2d(2), norm)
            height, width = height // 2, width // 2
        self.features.avgpool = nn.Identity()
        self.classifier = nn.Linear(self.classifier.in_features * height * width, num_classes)


def _keep_room(body: ResNet, side: int) -> None:
    """Takes the stride from the stages that would halve a map of 2 pixels or less."""
    for stage in (body.layer2, body.layer3, body.layer4):
        if side <= 2:
            stage[0].conv1.stride = stage[0].downsample[0].stride = (1, 1)
        else:
            side = (side + 1) // 2
