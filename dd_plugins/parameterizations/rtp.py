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

from math import ceil, prod, sqrt
from typing import Any

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from dd_plugins.api import BudgetTooSmall, Parameterization, RealData

# Where the number of bases is left out: what CIFAR-10 at IPC 1 has.
WANTED_IMAGES = 115  # of each class
FEWEST_BASES = 16


class RTP(Parameterization):
    """Bases and addressing coefficients; all classes share the bases."""

    api_version = 2

    class Config(Parameterization.Config):
        """Settings of the addressable memory."""

        bases: int | None = Field(None, ge=1, description="number of bases K; None: searched for")
        downsample: int = Field(2, ge=1, description="factor by which the bases are smaller than the images")
        lr: float | None = Field(None, gt=0, description="learning rate; None for the optimizer's")

    config: Config

    def images_per_class(self) -> int:
        """The whole part of (budget - K d) / (classes K), with d the elements of a basis."""
        bases = self.config.bases or self._search()
        self.config = self.config.model_copy(update={"bases": bases})
        fitting = self._fitting(bases)
        if fitting < 1:
            needed = bases * (self._basis() + self.data.num_classes)
            raise BudgetTooSmall(
                f"rtp: {bases} bases and one image per class need {needed} elements, but the budget is "
                f"{self.budget.elements}"
            )
        return fitting

    def build(self, num_images: int) -> None:
        """Allocates ``bases`` (float, ``(K, C h w)``) and ``coefficients`` (float, ``(N, K)``)."""
        if self.config.bases is None:
            self.images_per_class()
        self.bases = nn.Parameter(torch.zeros(int(self.config.bases or 0), self._basis()))
        self.coefficients = nn.Parameter(torch.zeros(num_images, len(self.bases)))

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Draws both matrices Xavier-uniformly: U(-a, a) with a = sqrt(6 / (rows + columns))."""
        del real
        for matrix in (self.coefficients, self.bases):
            limit = sqrt(6 / sum(matrix.shape))
            matrix.copy_((torch.rand(matrix.shape, generator=generator) * 2 - 1) * limit)

    def _decode(self, index: Tensor) -> Tensor:
        small = (self.coefficients[index] @ self.bases).view(-1, *self._basis_shape())
        if self.config.downsample == 1:
            return small
        return functional.interpolate(small, size=self.data.image_shape[1:], mode="bilinear", align_corners=False)

    def _keep(self, index: Tensor) -> None:
        self.coefficients = nn.Parameter(self.coefficients.detach()[index])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Bases and coefficients together, with their own learning rate where one is set."""
        group: dict[str, Any] = {"params": [self.bases, self.coefficients]}
        return [group if self.config.lr is None else {**group, "lr": self.config.lr}]

    def describe(self) -> str:
        """Bases, images, and what the bases take of the budget."""
        share = self.bases.numel() / self.budget.elements
        return f"rtp: {len(self.bases)} bases ({share:.1%} of the budget), {min(self.counts)} images of each class"

    def _basis_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one basis."""
        channels, height, width = self.data.image_shape
        return channels, ceil(height / self.config.downsample), ceil(width / self.config.downsample)

    def _basis(self) -> int:
        """Elements of one basis."""
        return prod(self._basis_shape())

    def _fitting(self, bases: int) -> int:
        return (self.budget.elements - bases * self._basis()) // (self.data.num_classes * bases)

    def _search(self) -> int:
        """The most bases with which `WANTED_IMAGES` of each class fit, but no fewer than `FEWEST_BASES` if they fit."""
        most = self.budget.elements // (self._basis() + self.data.num_classes * WANTED_IMAGES)
        possible = self.budget.elements // (self._basis() + self.data.num_classes)  # with one image of each class
        return max(1, min(max(most, FEWEST_BASES), possible))
