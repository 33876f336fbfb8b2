"""Sizes of a hierarchical memory network: exact arithmetic, and a search within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, prod, sqrt
from typing import Any

from dd_plugins.api import ConfigError, Cost, DataSpec, Shapes, StorageBudget, TensorSpec

# What an instance memory takes of an image at IPC 1 in the published cell (and with sqrt(IPC) beyond), and how much of
# the budget the shared part may take.
INSTANCE_SHARE = 1 / 96
SHARED_SHARE = 0.12
CHANNELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SMALLEST_GRID = 4  # rows and columns of a grid that the search chooses
LARGE_SIDE = 128  # from this side on the decoder doubles its maps four times instead of three


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

    def memory_shape(self, data: DataSpec) -> tuple[int, int]:
        """Rows and columns of every memory: the image's over a power of 2, rounded up."""
        return grid_shape(data, len(self.widths))

    @property
    def joined(self) -> int:
        """Channels that enter the decoder."""
        return self.extractor_channels + self.class_channels + self.instance_channels

    def shapes(self, data: DataSpec, counts: Sequence[int]) -> Shapes:
        """All tensors of a network with so many images of each class."""
        classes, grid, kernel = data.num_classes, self.memory_shape(data), self.extractor_kernel
        extracted = classes * self.extractor_channels
        shapes = {
            "dataset_memory": (1, self.dataset_channels, *grid),
            "class_memory": (classes, self.class_channels, *grid),
            "instance_memory": (sum(counts), self.instance_channels, *grid),
            "extractors.weight": (extracted, self.dataset_channels, kernel, kernel),
            "extractors.bias": (extracted,),
        }
        channels = [self.joined, *self.widths, data.image_shape[0]]
        names = [*(f"decoder.{level}" for level in range(len(self.widths))), "output"]
        for name, (inputs, outputs) in zip(names, pairwise(channels), strict=True):
            shapes |= {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}
        return {name: TensorSpec(shape) for name, shape in shapes.items()}

    def instance(self, data: DataSpec) -> int:
        """Floats of one instance memory, s."""
        return self.instance_channels * prod(self.memory_shape(data))

    def shared(self, data: DataSpec) -> int:
        """Floats that do not belong to one instance, R."""
        return sum(spec.elements for spec in self.shapes(data, ()).values())


def find_sizes(data: DataSpec, budget: StorageBudget, wanted: Mapping[str, Any], cost: Cost) -> Sizes:
    """Completes ``wanted`` (names of `Sizes`; None is free) to sizes that fill a budget well.

    The instance memory comes first, because it sets the number of images; then the widest decoder and class memory
    whose shared part stays below an eighth of the budget; if there is none, the smallest.
    """
    fixed = {name: value for name, value in wanted.items() if value is not None}
    doublings = _doublings_to(data, fixed["grid"]) if "grid" in fixed else _doublings(data)
    rows, columns = grid_shape(data, doublings)
    widths = fixed.get("widths")
    if widths is not None and len(widths) != doublings:
        raise ConfigError(
            f"parameterization.widths = {list(widths)}: expected {doublings} widths, one for each doubling from "
            f"{min(rows, columns)} to {min(data.image_shape[1:])} pixels"
        )
    ipc = max(budget.elements / (data.num_classes * prod(data.image_shape)), 1)
    instance = max(round(prod(data.image_shape) * INSTANCE_SHARE * sqrt(ipc) / (rows * columns)), 1)
    candidates = [
        replace(
            Sizes(min(rows, columns), channels, channels, instance, channels, 1, _taper(width, doublings)),
            **fixed,
        )
        for width in CHANNELS
        for channels in CHANNELS
        if channels <= width
    ]
    price = {size: cost(size.shapes(data, ()), 0) for size in candidates}
    fitting = [size for size in candidates if price[size] <= SHARED_SHARE * budget.bits]
    if not fitting:
        return min(candidates, key=lambda size: price[size])
    return max(fitting, key=lambda size: (sum(size.widths), price[size]))


def _taper(width: int, doublings: int) -> tuple[int, ...]:
    """Widths that shrink once after the first doubling: detail costs pixels, not channels."""
    return tuple(width if level == 0 else max(width * 3 // 4, 2) for level in range(doublings))


def grid_shape(data: DataSpec, doublings: int) -> tuple[int, int]:
    """Rows and columns of the least grid that reaches the image's size by so many doublings."""
    _, height, width = data.image_shape
    return ceil(height / 2**doublings), ceil(width / 2**doublings)


def _doublings(data: DataSpec) -> int:
    """As many doublings as leave a grid of four rows and columns, but three at most (four from 128 px on).

    Square images whose side can be halved evenly are halved evenly; all others are decoded larger and cropped.
    """
    _, height, width = data.image_shape
    limit = 4 if min(height, width) >= LARGE_SIDE else 3
    options = [k for k in range(limit + 1) if min(grid_shape(data, k)) >= SMALLEST_GRID]
    most = max(options, default=0)
    if height == width:
        return max(k for k in range(most + 1) if height % 2**k == 0) or most
    return most


def _doublings_to(data: DataSpec, grid: int) -> int:
    """How many doublings lead from a grid of ``grid`` rows or columns to the image's shorter side."""
    side = min(data.image_shape[1:])
    grids = [min(grid_shape(data, k)) for k in range((side - 1).bit_length() + 1)]
    if grid not in grids:
        raise ConfigError(
            f"parameterization.grid = {grid}: doubling it does not lead to a side of {side} pixels; "
            f"there are {', '.join(map(str, grids))}"
        )
    return grids.index(grid)
