"""IDC: several small images in the place of one, read out by tiles and enlarged (multi-formation).

Source:
    Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, arXiv 2205.14959,
    Section 4, and its released code.
Deviations:
    ``init`` draws random images of each class, without replacement as long as the class has as many; the code takes the
    first ones of the data set, which are not a random sample of data sets that are sorted.
    Where the factor does not divide the side, ``init=mix`` fills just the tiles that are decoded: 10, 10 and 8 pixels
    of 28 with factor 3. The code fills 10, 9 and 9 and decodes at 0, 10 and 20, so that tiles show parts of their
    neighbors. At 224 pixels with factor 3 both are 75, 75 and 74.
    The released evaluator has no CutMix for MNIST with several tiles in an image, and none for SVHN at IPC 1 with one
    tile: the protocols ``idc-mnist`` and ``idc-svhn-ipc1``. Protocol ``idc`` is that of all other data sets.
    Images are kept within [0, 1] after every step; the code clamps every hundred steps and reports no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from dd_plugins.api import (
    ConfigError,
    Cost,
    DataSpec,
    Parameterization,
    PluginConfig,
    PruningUnits,
    RealData,
    Shapes,
    StorageBudget,
    TensorSpec,
    UsageError,
    parts_of_images,
    random_real_images,
)

PADDING = 0.5  # pixel value after the last row and column where the factor does not divide the side


class IDC(PruningUnits, Parameterization["IDC.Config"]):
    """Stores as many images as pixels would, each of ``factor ** 2`` tiles; every tile is decoded to an image."""

    api_version = 2
    images: nn.Parameter  # float, (N / factor ** 2, C, H, W), pixels in [0, 1]
    _tile: Tensor
    _image: Tensor

    class Config(PluginConfig):
        """Settings of the multi-formation container."""

        factor: int = Field(2, ge=1, description="tiles along each side; 1 is IDC-I, plain pixels")
        init: Literal["mix", "real", "noise"] = Field(
            "mix", description="a real image in every tile, a real image in every stored one, or N(0.5, 0.25)"
        )
        lr: float | None = Field(None, gt=0, description="learning rate of the pixels; None for the optimizer's")

    @classmethod
    def resolve(cls, data: DataSpec, budget: StorageBudget, config: Config, cost: Cost) -> Config:
        """Refuses a factor that leaves tiles of padding alone."""
        _, height, width = data.image_shape
        if any((config.factor - 1) * ceil(side / config.factor) >= side for side in (height, width)):
            raise ConfigError(
                f"parameterization.factor = {config.factor}: sides of {height} and {width} would leave its last tiles "
                f"empty"
            )
        return config

    @classmethod
    def images_per_unit(cls, config: Config) -> int:
        """The tiles of a stored image."""
        return config.factor**2

    @classmethod
    def shapes(cls, data: DataSpec, counts: Sequence[int], config: Config) -> Shapes:
        """The stored images."""
        return {"images": TensorSpec((sum(counts) // config.factor**2, *data.image_shape))}

    def build(self) -> None:
        """Allocates the images; tile and stored image of each decoded one follow from the counts."""
        super().build()
        tile, image = parts_of_images(self.counts, self.config.factor**2)
        self.register_buffer("_tile", tile, persistent=False)
        self.register_buffer("_image", image, persistent=False)

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Fills the tiles, or the stored images, with random real images of their class; or draws noise."""
        if self.config.init == "noise":
            noise = torch.randn(self.images.shape, generator=generator) * 0.25 + 0.5
            self.images.copy_(noise.clamp(0, 1))
            return
        tiles = self.config.factor**2 if self.config.init == "mix" else 1
        counts = [count // self.config.factor**2 * tiles for count in self.counts]
        pixels = self.data.denormalize(random_real_images(real, counts, generator))
        if tiles == 1:
            self.images.copy_(pixels)
            return
        for tile, (top, left, height, width) in enumerate(self._tiles()):
            own = pixels[self._tile == tile]  # in the order of the decoded images: class-major, then by stored image
            self.images[self._image[self._tile == tile], :, top : top + height, left : left + width] = (
                functional.interpolate(own, size=(height, width), mode="nearest")
            )

    def _decode(self, index: Tensor) -> Tensor:
        factor = self.config.factor
        if factor == 1:
            return self.data.normalize(self.images[self._image[index]])
        _, height, width = self.data.image_shape
        side = (ceil(height / factor), ceil(width / factor))
        padding = (0, side[1] * factor - width, 0, side[0] * factor - height)
        stored = functional.pad(self.images[self._image[index]], padding, value=PADDING)
        cut = stored.unfold(2, side[0], side[0]).unfold(3, side[1], side[1])  # (B, C, factor, factor, h, w)
        tile = self._tile[index]
        rows = torch.arange(len(index), device=index.device)
        tiles = cut[rows, :, tile // factor, tile % factor]
        enlarged = functional.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)
        return self.data.normalize(enlarged)

    def units(self) -> Tensor:
        """The stored image of every decoded one: a single tile that is dropped saves nothing."""
        return self._image

    def _keep(self, index: Tensor) -> None:
        stored, tiles = self._image[index].unique(return_counts=True)
        if bool((tiles != self.config.factor**2).any()):
            raise UsageError("idc: dropping single tiles saves no storage; an image goes with all its tiles")
        self.images = nn.Parameter(self.images.detach()[stored])
        self._tile, self._image = self._tile[index], torch.searchsorted(stored, self._image[index])

    @torch.no_grad()
    def project(self) -> None:
        """Clips to [0, 1]."""
        self.images.clamp_(0, 1)

    def describe(self) -> str:
        """Stored and decoded images."""
        tiles = self.config.factor**2
        return f"idc: {len(self.images)} stored images of {tiles} tiles, {len(self.images) * tiles} decoded"

    def _tiles(self) -> list[tuple[int, int, int, int]]:
        """Top, left, height and width of every tile, row by row; tiles of the last row and column may be smaller."""
        _, height, width = self.data.image_shape
        side = (ceil(height / self.config.factor), ceil(width / self.config.factor))
        corners = [(r * side[0], c * side[1]) for r in range(self.config.factor) for c in range(self.config.factor)]
        return [(top, left, min(side[0], height - top), min(side[1], width - left)) for top, left in corners]
