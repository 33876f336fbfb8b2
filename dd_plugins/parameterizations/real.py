"""Real images as they are, one byte per number: the container of selected training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from dd_plugins.api import (
    DataSpec,
    IncompatibleError,
    Parameterization,
    PluginConfig,
    RealData,
    Shapes,
    Split,
    TensorSpec,
    UsageError,
    random_real_rows,
)


class Real(Parameterization[PluginConfig]):
    """Real images, not learned: a coreset, as `dd-bench prune` selects it."""

    api_version = 2
    pixels: Tensor  # uint8, (N, C, H, W)

    @classmethod
    def shapes(cls, data: DataSpec, counts: Sequence[int], config: PluginConfig) -> Shapes:
        """The pixels."""
        return {"pixels": TensorSpec((sum(counts), *data.image_shape), torch.uint8)}

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Copies random real images of each class, each at most once.

        Raises:
            UsageError: If a class has fewer training images than are to be stored.
        """
        if real is None:
            raise UsageError("real: needs real data")
        sizes = real.train.class_sizes()
        if few := [label for label, size in enumerate(sizes) if size < self.counts[label]]:
            raise UsageError(
                f"real: {len(few)} classes have fewer training images than are to be stored, first class {few[0]}: "
                f"{sizes[few[0]]} of {self.counts[few[0]]}; real images are not repeated"
            )
        self.take(real.train, random_real_rows(real, self.counts, generator))

    @torch.no_grad()
    def take(self, split: Split, rows: Tensor) -> None:
        """Copies the images of ``rows`` (int64, ``(N,)``), which must be in the order of the labels."""
        if split.pixels.dtype != torch.uint8:
            raise UsageError(f"real: expected images of bytes, but got {split.pixels.dtype}; whitened images have none")
        if not torch.equal(split.labels[rows], self.labels.to(split.labels.device)):
            raise UsageError("real: images must be in the order of their labels")
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
