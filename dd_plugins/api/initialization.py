"""Random real images, which many containers begin with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from dd_plugins.api.real_data import RealData
from dd_plugins.errors import UsageError


def random_real_rows(real: RealData | None, counts: Sequence[int], generator: Generator) -> Tensor:
    """Random training images to initialise a container with, ordered by class; int64, ``(N,)``, rows of ``real.train``.

    Args:
        real: The data set.
        counts: How many of each class; drawn without repetition as long as the class has as many.
        generator: Source of randomness.

    Raises:
        UsageError: If there is no data set.
    """
    if real is None:
        raise UsageError("initialization with real images needs real data")
    rows = real.train.per_class(max(counts), generator)
    return torch.cat([row[:count] for row, count in zip(rows, counts, strict=True)])


def random_real_images(real: RealData | None, counts: Sequence[int], generator: Generator) -> Tensor:
    """The images of `random_real_rows`: float, ``(N, C, H, W)``, model space."""
    rows = random_real_rows(real, counts, generator)
    assert real is not None
    return real.train.images(rows)
