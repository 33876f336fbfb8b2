"""RTP, "Remember the Past": every image is a linear combination of a few bases that all classes share.

Source:
    Deng & Russakovsky, "Remember the Past: Distilling Datasets into Addressable Memories for Neural Networks",
    NeurIPS 2022, arXiv 2206.02916, and its released code:  x_i = enlarge(A_i B).
Deviations:
    Sides that ``downsample`` does not divide are rounded up, which the code does not know. The number of bases is
    published for CIFAR-10 at IPC 1 alone; elsewhere, left out, it is ours: chosen so that about a hundred images of
    each class fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod, sqrt

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from dd_plugins.api import (
    Cost,
    DataSpec,
    Parameterization,
    PluginConfig,
    RealData,
    Shapes,
    StorageBudget,
    TensorSpec,
    largest,
)

# Where the number of bases is left out: what CIFAR-10 at IPC 1 has.
WANTED_IMAGES = 115  # of each class
FEWEST_BASES = 16


class RTP(Parameterization["RTP.Config"]):
    """Bases and addressing coefficients; all classes share the bases."""

    api_version = 2
    bases: nn.Parameter  # float, (K, C h w)
    coefficients: nn.Parameter  # float, (N, K)

    class Config(PluginConfig):
        """Settings of the addressable memory."""

        bases: int | None = Field(None, ge=1, description="number of bases K; None: searched for")
        downsample: int = Field(2, ge=1, description="factor by which the bases are smaller than the images")
        lr: float | None = Field(None, gt=0, description="learning rate; None for the optimizer's")

    @classmethod
    def resolve(cls, data: DataSpec, budget: StorageBudget, config: Config, cost: Cost) -> Config:
        """The most bases with which `WANTED_IMAGES` of each class fit, but no fewer than `FEWEST_BASES` if they fit."""
        if config.bases is not None:
            return config

        def most(images: int) -> int:
            """Bases that fit with so many images of each class."""

            def fits(bases: int) -> bool:
                sized = config.model_copy(update={"bases": bases})
                return cls.price(data, images, sized, cost) <= budget.bits

            return largest(fits)

        bases = max(1, min(max(most(WANTED_IMAGES), FEWEST_BASES), most(1)))
        return config.model_copy(update={"bases": bases})

    @classmethod
    def shapes(cls, data: DataSpec, counts: Sequence[int], config: Config) -> Shapes:
        """K bases, and K coefficients of each image."""
        bases = config.bases or 0
        basis = prod(_basis_shape(data, config))
        return {"bases": TensorSpec((bases, basis)), "coefficients": TensorSpec((sum(counts), bases))}

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Draws both matrices Xavier-uniformly: U(-a, a) with a = sqrt(6 / (rows + columns))."""
        del real
        for matrix in (self.coefficients, self.bases):
            limit = sqrt(6 / sum(matrix.shape))
            matrix.copy_((torch.rand(matrix.shape, generator=generator) * 2 - 1) * limit)

    def _decode(self, index: Tensor) -> Tensor:
        small = (self.coefficients[index] @ self.bases).view(-1, *_basis_shape(self.data, self.config))
        if self.config.downsample == 1:
            return small
        return functional.interpolate(small, size=self.data.image_shape[1:], mode="bilinear", align_corners=False)

    def _keep(self, index: Tensor) -> None:
        self.coefficients = nn.Parameter(self.coefficients.detach()[index])

    def describe(self) -> str:
        """Bases, images, and what the bases take of the budget."""
        share = self.bases.numel() / self.budget.elements
        return f"rtp: {len(self.bases)} bases ({share:.1%} of the budget), {min(self.counts)} images of each class"


def _basis_shape(data: DataSpec, config: RTP.Config) -> tuple[int, int, int]:
    """Channels, height and width of one basis."""
    channels, height, width = data.image_shape
    return channels, ceil(height / config.downsample), ceil(width / config.downsample)
