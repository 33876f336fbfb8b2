"""Sizes of a hierarchical memory network: exact arithmetic, and a search within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod, sqrt
from typing import Any

from dd_plugins.api import ConfigError, DataSpec, IncompatibleError

# What an instance memory takes of an image at IPC 1 in the published cell (and with sqrt(IPC) beyond), and how much of
# the budget the shared part may take.
INSTANCE_SHARE = 1 / 96
SHARED_SHARE = 0.12
CHANNELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Sizes:
    """All sizes of a hierarchical memory network; names as in its ``Config``."""

    grid: int
    dataset_channels: int
    class_channels: int
    instance_channels: int
    extractor_channels: int
    extractor_kernel: int
    widths: tuple[int, ...]

    @property
    def instance(self) -> int:
        """Floats of one instance memory, s."""
        return self.instance_channels * self.grid**2

    @property
    def joined(self) -> int:
        """Channels that enter the decoder."""
        return self.extractor_channels + self.class_channels + self.instance_channels

    def memories(self, data: DataSpec) -> int:
        """Floats of m^D and m^C."""
        return (self.dataset_channels + data.num_classes * self.class_channels) * self.grid**2

    def extractors(self, data: DataSpec) -> int:
        """Floats of all f_c."""
        per_channel = self.extractor_kernel**2 * self.dataset_channels + 1
        return data.num_classes * self.extractor_channels * per_channel

    def decoder(self, data: DataSpec) -> int:
        """Floats of D."""
        channels = [self.joined, *self.widths, data.image_shape[0]]
        return sum(9 * a * b + b for a, b in pairwise(channels))

    def shared(self, data: DataSpec) -> int:
        """Floats that do not belong to one instance, R."""
        return self.memories(data) + self.extractors(data) + self.decoder(data)

    def images_per_class(self, data: DataSpec, budget: int) -> int:
        """G = floor((B - R) / (C s)); zero or below if nothing fits."""
        return (budget - self.shared(data)) // (data.num_classes * self.instance)


def find_sizes(data: DataSpec, budget: int, wanted: Mapping[str, Any]) -> Sizes:
    """Completes ``wanted`` (names of `Sizes`; None is free) to sizes that fill a budget well.

    The instance memory comes first, for it sets the number of images; then the widest decoder and class memory whose
    shared part stays below an eighth of the budget; below that, the smallest there is.
    """
    _, height, width = data.image_shape
    if height != width:
        raise IncompatibleError(f"hmn: needs square images, but those of {data.name} have {height}x{width} pixels")
    fixed = {name: value for name, value in wanted.items() if value is not None}
    grid = fixed.get("grid") or _grid(data)
    doublings = _doublings(data, grid)
    widths = fixed.get("widths")
    if widths is not None and len(widths) != doublings:
        raise ConfigError(
            f"parameterization.widths = {list(widths)}: expected {doublings} widths, one for each doubling from "
            f"{grid} to {data.image_shape[1]} pixels"
        )
    ipc = max(budget / (data.num_classes * prod(data.image_shape)), 1)
    instance = max(round(prod(data.image_shape) * INSTANCE_SHARE * sqrt(ipc) / grid**2), 1)
    candidates = [
        replace(
            Sizes(grid, channels, channels, instance, channels, 1, _taper(width, doublings)),
            **{**fixed, "grid": grid},
        )
        for width in CHANNELS
        for channels in CHANNELS
        if channels <= width
    ]
    fitting = [size for size in candidates if size.shared(data) <= SHARED_SHARE * budget]
    if not fitting:
        return min(candidates, key=lambda size: size.shared(data))
    return max(fitting, key=lambda size: (sum(size.widths), size.shared(data)))


def _taper(width: int, doublings: int) -> tuple[int, ...]:
    """Widths that halve once behind the first doubling: detail costs pixels, not channels."""
    return tuple(width if level == 0 else max(width * 3 // 4, 2) for level in range(doublings))


def _grid(data: DataSpec) -> int:
    """The smallest grid of four and up that reaches the image side by at most three doublings (four from 128 px on)."""
    side = data.image_shape[1]
    limit = 4 if side >= 128 else 3
    options = [side >> k for k in range(limit + 1) if side % (1 << k) == 0 and side >> k >= 4]
    return min(options, default=side)


def _doublings(data: DataSpec, grid: int) -> int:
    side = data.image_shape[1]
    doublings = max((side // grid).bit_length() - 1, 0) if grid else 0
    if grid << doublings != side:
        raise ConfigError(f"parameterization.grid = {grid}: doubling it does not lead to a side of {side} pixels")
    return doublings
