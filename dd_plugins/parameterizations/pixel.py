"""Pixels: the synthetic images themselves are stored.

Source:
    Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, arXiv 2006.05929: the container of
    DC, DSA, DM, CAFE and MTT.
Deviations:
    None. Images live in model space and are never clipped, unless ``clamp`` asks for it (IDC keeps them in [0, 1]).
"""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from dd_plugins.api import Parameterization, PluginConfig, RealData, UsageError


class Pixel(Parameterization):
    """Stores every image as its pixels: as many images as the budget is named after."""

    api_version = 2

    class Config(PluginConfig):
        """Settings of the pixel container."""

        init: Literal["real", "noise"] = Field("real", description="start from random real images, or from N(0, 1)")
        clamp: bool = Field(False, description="keep pixel values in [0, 1] after every step")
        lr: float | None = Field(None, gt=0, description="learning rate of the pixels; None for the optimizer's")

    config: Config

    def images_per_class(self) -> int:
        """One image costs C x H x W elements."""
        return self.budget.elements // (self.data.num_classes * prod(self.data.image_shape))

    def build(self, num_images: int) -> None:
        """Allocates ``images``: float, ``(N, C, H, W)``, model space."""
        self.images = nn.Parameter(torch.zeros(num_images, *self.data.image_shape))

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Copies random real images of each class, or draws noise."""
        if self.config.init == "noise":
            self.images.copy_(torch.randn(self.images.shape, generator=generator))
            return
        if real is None:
            raise UsageError("pixel: init=real needs real data")
        rows = real.train.per_class(max(self.counts), generator)
        chosen = torch.cat([row[:count] for row, count in zip(rows, self.counts, strict=True)])
        self.images.copy_(real.train.images(chosen))

    def _decode(self, index: Tensor) -> Tensor:
        return self.images[index]

    def _keep(self, index: Tensor) -> None:
        self.images = nn.Parameter(self.images.detach()[index])

    def parameter_groups(self) -> list[dict[str, object]]:
        """All pixels, with their own learning rate where one is set."""
        group: dict[str, object] = {"params": [self.images]}
        return [group if self.config.lr is None else {**group, "lr": self.config.lr}]

    @torch.no_grad()
    def project(self) -> None:
        """Clips to [0, 1] where ``clamp`` is set."""
        if self.config.clamp:
            low, high = self.data.normalize(torch.tensor([0.0, 1.0], device=self.images.device).view(2, 1, 1, 1))
            self.images.clamp_(low, high)
