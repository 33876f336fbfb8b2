"""Real images as they are, one byte a number: what a selection of training images is stored as."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Generator, Tensor

from dd_plugins.api import IncompatibleError, Parameterization, RealData, Split, UsageError


class Real(Parameterization):
    """Real images, not learned: a coreset, as `dd-bench prune` selects it."""

    api_version = 2
    pixels: Tensor

    def images_per_class(self) -> int:
        """One image has C x H x W elements; each takes a byte instead of four."""
        return self.budget.elements // (self.data.num_classes * prod(self.data.image_shape))

    def build(self, num_images: int) -> None:
        """Allocates ``pixels``: uint8, ``(N, C, H, W)``."""
        self.register_buffer("pixels", torch.zeros(num_images, *self.data.image_shape, dtype=torch.uint8))

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Takes random real images of each class, each at most once.

        Raises:
            UsageError: If a class has fewer training images than it shall have here.
        """
        if real is None:
            raise UsageError("real: needs real data")
        sizes = real.train.class_sizes()
        if few := [label for label, size in enumerate(sizes) if size < self.counts[label]]:
            raise UsageError(
                f"real: {len(few)} classes have fewer training images than are to be stored, first class {few[0]}: "
                f"{sizes[few[0]]} of {self.counts[few[0]]}; real images are not repeated"
            )
        rows = real.train.per_class(max(self.counts), generator)
        self.take(real.train, torch.cat([row[:count] for row, count in zip(rows, self.counts, strict=True)]))

    @torch.no_grad()
    def take(self, split: Split, rows: Tensor) -> None:
        """Takes the images of ``rows`` (int64, ``(N,)``), which must come in the order of the labels."""
        if split.pixels.dtype != torch.uint8:
            raise UsageError(f"real: expected images of bytes, but got {split.pixels.dtype}; whitened ones are none")
        if not torch.equal(split.labels[rows], self.labels.to(split.labels.device)):
            raise UsageError("real: images must come in the order of their labels")
        self.pixels.copy_(split.pixels[split.index[rows]])

    def _decode(self, index: Tensor) -> Tensor:
        return self.data.normalize(self.pixels[index])

    def _keep(self, index: Tensor) -> None:
        self.pixels = self.pixels[index]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Refuses: there is nothing to learn.

        Raises:
            IncompatibleError: Always.
        """
        raise IncompatibleError("real: real images are not learned; `dd-bench prune` selects them, `pixel` learns")
