"""Pixels: the synthetic images themselves are stored.

Source:
    Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, arXiv 2006.05929: the container of
    DC, DSA, DM, CAFE and MTT.
Deviations:
    None. Images live in model space and are never clipped, unless ``clamp`` asks for it (IDC keeps them in [0, 1]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from dd_plugins.api import DataSpec, Parameterization, PluginConfig, RealData, Shapes, TensorSpec, random_real_images


class Pixel(Parameterization["Pixel.Config"]):
    """Stores every image as its pixels: as many images as the budget is named after."""

    api_version = 2
    images: nn.Parameter  # float, (N, C, H, W), model space

    class Config(PluginConfig):
        """Settings of the pixel container."""

        init: Literal["real", "noise"] = Field("real", description="start from random real images, or from N(0, 1)")
        clamp: bool = Field(False, description="keep pixel values in [0, 1] after every step")
        lr: float | None = Field(None, gt=0, description="learning rate of the pixels; None for the optimizer's")

    @classmethod
    def shapes(cls, data: DataSpec, counts: Sequence[int], config: Config) -> Shapes:
        """The images."""
        return {"images": TensorSpec((sum(counts), *data.image_shape))}

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Copies random real images of each class, or draws noise."""
        if self.config.init == "noise":
            self.images.copy_(torch.randn(self.images.shape, generator=generator))
        else:
            self.images.copy_(random_real_images(real, self.counts, generator))

    def _decode(self, index: Tensor) -> Tensor:
        return self.images[index]

    def _keep(self, index: Tensor) -> None:
        self.images = nn.Parameter(self.images.detach()[index])

    @torch.no_grad()
    def project(self) -> None:
        """Clips to [0, 1] where ``clamp`` is set."""
        if self.config.clamp:
            low, high = self.data.normalize(torch.tensor([0.0, 1.0], device=self.images.device).view(2, 1, 1, 1))
            self.images.clamp_(low, high)
