"""The network of the field: blocks of convolution, norm, activation and pooling, and one linear classifier.

Source: S. Gidaris and N. Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018
(arXiv 1804.09458), as used by B. Zhao, K. R. Mopuri and H. Bilen, "Dataset Condensation with Gradient Matching",
ICLR 2021 (arXiv 2006.05929), where width, depth, activation, norm and pooling are varied.

Deviations:
    - A 1-channel image gets padding 3 in the first convolution only if it is 28x28, where that makes the 32x32 map;
      the authors' code pads every 1-channel image so. Other sizes (the 8x8 digits) keep padding 1.
    - Activations are out of place, so that features in the middle of the network can be taken; values are the same.
    - The default depth halves the map down to 4x4 with at least 2 blocks: 3 blocks at 28 and 32 px, 4 at 64, as later
      papers choose it, and 2 for the 8x8 digits, where a third block would normalise single 2x2 maps: on digits at
      IPC 1, random real images score 78 % with 2 blocks and 72 % with 3 (on training images).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from dd_plugins.api.network import Network
from dd_plugins.errors import ConfigError
from dd_plugins.networks import instance_norm, stem_map, stem_padding
from dd_plugins.networks.classifier import FeatureClassifier

NORM_GROUPS = 4
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "swish": nn.SiLU,
}


class ConvNet(FeatureClassifier):
    """ConvNet-D: ``depth`` blocks of convolution, norm, activation and pooling, then a linear classifier."""

    api_version = 2

    class Config(Network.Config):
        """Settings of the ConvNet; the defaults are the network of nearly all published tables."""

        width: int = Field(128, ge=1, description="channels of every convolution")
        depth: int | None = Field(
            None, ge=1, description="blocks; None: 2 up to 16 px, 3 up to 32, 4 up to 64, 5 up to 128, 6 up to 256"
        )
        activation: Literal["sigmoid", "relu", "leakyrelu", "swish"] = Field("relu", description="after each norm")
        norm: Literal["none", "batch", "layer", "instance", "group"] = Field(
            "instance", description="after each convolution; 'group' has 4 groups, 'layer' spans channels and pixels"
        )
        pooling: Literal["none", "max", "avg"] = Field("avg", description="2x2, at the end of each block")

        @model_validator(mode="after")
        def _groups_fit(self) -> ConvNet.Config:
            if self.norm == "group" and self.width % NORM_GROUPS:
                raise ValueError(f"norm 'group' needs a width that {NORM_GROUPS} divides, but got {self.width}")
            return self

    config: Config

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        height, width = stem_map(image_shape)
        depth = self._depth(min(height, width))
        channels, padding = image_shape[0], stem_padding(image_shape, 3)
        blocks = []
        for _ in range(depth):
            blocks.append(self._block(channels, padding, (height, width)))
            channels, padding = self.config.width, 1
            if self.config.pooling != "none":
                height, width = height // 2, width // 2
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels * height * width, num_classes)

    def taps(self, images: Tensor) -> list[Tensor]:
        """The maps behind each block's activation, before its pooling, and the last block's pooled map.

        Args:
            images: Float, ``(N, C, H, W)``, model space.

        Returns:
            Float, ``(N, width, h, w)`` each; one more than there are blocks.
        """
        found, maps = [], images
        for block in self.features.children():
            for layer in block.children():
                if isinstance(layer, nn.AvgPool2d | nn.MaxPool2d):
                    found.append(maps)
                maps = layer(maps)
            if self.config.pooling == "none":
                found.append(maps)
        return [*found, maps]

    def _depth(self, side: int) -> int:
        # One block for every halving down to 4x4: (side - 1).bit_length() is the rounded-up logarithm.
        depth = self.config.depth or max(2, (side - 1).bit_length() - 2)
        most = side.bit_length() - 1
        if self.config.pooling != "none" and depth > most:
            raise ConfigError(
                f"network.depth = {self.config.depth} ({depth} blocks): a map of {side} px can be halved "
                f"at most {most} times; choose a smaller depth, or pooling 'none'"
            )
        return depth

    def _block(self, channels: int, padding: int, size: tuple[int, int]) -> nn.Sequential:
        config = self.config
        layers: list[nn.Module] = [nn.Conv2d(channels, config.width, 3, padding=padding)]
        if config.norm != "none":
            layers.append(_norm(config.norm, config.width, size))
        layers.append(ACTIVATIONS[config.activation]())
        if config.pooling != "none":
            layers.append(nn.MaxPool2d(2) if config.pooling == "max" else nn.AvgPool2d(2))
        return nn.Sequential(*layers)


def _norm(kind: str, channels: int, size: tuple[int, int]) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "layer":
        return nn.LayerNorm((channels, *size))
    return instance_norm(channels) if kind == "instance" else nn.GroupNorm(NORM_GROUPS, channels)
