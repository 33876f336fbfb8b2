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

from math import ceil, prod
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from dd_plugins.api import ConfigError, Parameterization, RealData, UsageError

PADDING = 0.5  # pixel value behind the last row and column where the factor does not divide the side


class IDC(Parameterization):
    """Stores as many images as pixels would, each of ``factor ** 2`` tiles; every tile is decoded to an image."""

    api_version = 2

    class Config(Parameterization.Config):
        """Settings of the multi-formation container."""

        factor: int = Field(2, ge=1, description="tiles along each side; 1 is IDC-I, plain pixels")
        init: Literal["mix", "real", "noise"] = Field(
            "mix", description="a real image in every tile, a real image in every stored one, or N(0.5, 0.25)"
        )
        lr: float | None = Field(None, gt=0, description="learning rate of the pixels; None for the optimizer's")

    config: Config

    def images_per_class(self) -> int:
        """Factor ** 2 images for every stored one, which costs C x H x W elements."""
        stored = self.budget.elements // (self.data.num_classes * prod(self.data.image_shape))
        return stored * self.config.factor**2

    def build(self, num_images: int) -> None:
        """Allocates ``images``: float, ``(N / factor ** 2, C, H, W)``, pixels in [0, 1]."""
        factor, tiles = self.config.factor, self.config.factor**2
        _, height, width = self.data.image_shape
        if any((factor - 1) * ceil(side / factor) >= side for side in (height, width)):
            raise ConfigError(
                f"parameterization.factor = {factor}: sides of {height} and {width} would leave its last tiles empty"
            )
        if any(count % tiles for count in self.counts):
            raise UsageError(f"idc: expected multiples of {tiles} images in every class, but got {self.counts}")
        self.images = nn.Parameter(torch.zeros(num_images // tiles, *self.data.image_shape))
        counts = torch.tensor(self.counts)
        first = torch.cumsum(counts, 0) - counts
        within = torch.cat([torch.arange(count) for count in self.counts])
        stored = (counts // tiles)[self.labels]
        # Tile-major within a class: the first tile of all its stored images, then the second of all, and so on.
        self.register_buffer("_tile", within // stored, persistent=False)
        image = (first // tiles)[self.labels] + within % stored
        self.register_buffer("_image", image, persistent=False)

    _tile: Tensor
    _image: Tensor

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Fills the tiles, or the stored images, with random real images of their class; or draws noise."""
        if self.config.init == "noise":
            noise = torch.randn(self.images.shape, generator=generator) * 0.25 + 0.5
            self.images.copy_(noise.clamp(0, 1))
            return
        if real is None:
            raise UsageError(f"idc: init={self.config.init} needs real data; set parameterization.init=noise")
        tiles = self.config.factor**2 if self.config.init == "mix" else 1
        counts = [count // self.config.factor**2 * tiles for count in self.counts]
        rows = real.train.per_class(max(counts), generator)
        chosen = torch.cat([row[:count] for row, count in zip(rows, counts, strict=True)])
        pixels = self.data.denormalize(real.train.images(chosen))
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
            raise UsageError(f"idc: dropping single tiles saves no storage; all {self.config.factor**2} of an image go")
        self.images = nn.Parameter(self.images.detach()[stored])
        self._tile, self._image = self._tile[index], torch.searchsorted(stored, self._image[index])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All pixels, with their own learning rate where one is set."""
        group: dict[str, Any] = {"params": [self.images]}
        return [group if self.config.lr is None else {**group, "lr": self.config.lr}]

    @torch.no_grad()
    def project(self) -> None:
        """Clips to [0, 1]."""
        self.images.clamp_(0, 1)

    def describe(self) -> str:
        """How many images are read out of how many."""
        tiles = self.config.factor**2
        return f"idc: {len(self.images)} stored images of {tiles} tiles, {len(self.images) * tiles} decoded"

    def _tiles(self) -> list[tuple[int, int, int, int]]:
        """Top, left, height and width of every tile, row by row; tiles of the last row and column may be smaller."""
        _, height, width = self.data.image_shape
        side = (ceil(height / self.config.factor), ceil(width / self.config.factor))
        corners = [(r * side[0], c * side[1]) for r in range(self.config.factor) for c in range(self.config.factor)]
        return [(top, left, min(side[0], height - top), min(side[1], width - left)) for top, left in corners]
