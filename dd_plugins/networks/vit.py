"""Vision transformer for small images, as cross-architecture tables of generative priors use it.

Source: A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv 2010.11929), in the sizes of
G. Cazenavette et al., "Generalizing Dataset Distillation via Deep Generative Prior", CVPR 2023 (arXiv 2305.01649):
patch 4, depth 6, 512 channels, 8 heads. The layers are torchvision's.

Deviations:
    - Any channel count and image size: the default patch gives at most 8x8 of them and has at least 2x2 pixels (on
      single pixels it did not learn the 8x8 digits: 18 % after 600 updates on all of them); images that it does not
      divide are padded with zeros.
    - No dropout, which would draw from the global generator: trial k of every method sees the same randomness.
    - Layer norms stay at every size; the authors take them out for ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vision_transformer import Encoder

from dd_plugins.api.network import Network
from dd_plugins.networks.classifier import FeatureClassifier

MOST_PATCHES = 8  # along the shorter side, by default
SMALLEST_PATCH = 2  # by default


class ViT(FeatureClassifier):
    """Patches and a class token through pre-norm transformer blocks; the token is what is classified."""

    api_version = 2
    check_settings: ClassVar[Mapping[str, Any]] = {"width": 16, "depth": 2, "heads": 2, "patch": 4}

    class Config(Network.Config):
        """Settings of the transformer."""

        patch: int | None = Field(None, ge=1, description="side of a patch; None: 8 a side, of 2 pixels at least")
        depth: int = Field(6, ge=1, le=1000, description="transformer blocks")
        width: int = Field(512, ge=1, description="channels of a token, and of each block's perceptron")
        heads: int = Field(8, ge=1, description="attention heads")

        @model_validator(mode="after")
        def _heads_fit(self) -> ViT.Config:
            if self.width % self.heads:
                raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
            return self

    config: Config

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        patch = self.config.patch or max(SMALLEST_PATCH, -(-min(image_shape[1:]) // MOST_PATCHES))
        self.features = Tokens(image_shape, patch, self.config)
        self.classifier = nn.Linear(self.config.width, num_classes)


class Tokens(nn.Module):
    """From images (float, ``(N, C, H, W)``) to the class token behind the last block: float, ``(N, width)``."""

    def __init__(self, image_shape: tuple[int, int, int], patch: int, config: ViT.Config) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.padding = (0, -width % patch, 0, -height % patch)
        count = -(-height // patch) * -(-width // patch)
        self.project = nn.Conv2d(channels, config.width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.encoder = Encoder(
            count + 1,
            config.depth,
            config.heads,
            config.width,
            config.width,
            dropout=0.0,
            attention_dropout=0.0,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        for block in self.encoder.layers:
            block.self_attention = Attention(block.self_attention)

    def forward(self, images: Tensor) -> Tensor:
        """All tokens see each other; the first one is returned."""
        patches = self.project(functional.pad(images, self.padding)).flatten(2).transpose(1, 2)
        tokens: Tensor = self.encoder(torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1))
        return tokens[:, 0]


class Attention(nn.Module):
    """Attention step by step: fused kernels cannot be differentiated twice, which gradient matching does."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        """What the attention gives; that weights are needed is what keeps it from fusing."""
        del need_weights
        attended: tuple[Tensor, Tensor | None] = self.attention(query, key, value, need_weights=True)
        return attended
