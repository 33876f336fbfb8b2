"""Plans: the tensors that a number of images takes, their price in bits, and how many images fit into a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Generic, NamedTuple, Protocol, final

import torch
from torch import Tensor

from dd_plugins.api.config import ConfigT
from dd_plugins.api.data import DataSpec
from dd_plugins.api.storage import StorageBudget
from dd_plugins.errors import BudgetTooSmall, PluginContractError

FLOAT32_BITS = 32
MOST = 2**128  # beyond any budget


class TensorSpec(NamedTuple):
    """Shape and type of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def elements(self) -> int:
        """Numbers that it holds."""
        return prod(self.shape)


Shapes = Mapping[str, TensorSpec]


class Cost(Protocol):
    """Prices stored tensors in bits."""

    def __call__(self, shapes: Shapes, images: int) -> int:
        """Bits of a stored set; must not decrease with the number of images.

        Args:
            shapes: The container's tensors, by name.
            images: Decoded images in all, each of which has a label.
        """


def float32_cost(shapes: Shapes, images: int) -> int:
    """The cost in published settings: 32 bits for every number, also for those of a smaller type; labels are free."""
    del images
    return sum(spec.elements * max(FLOAT32_BITS, 8 * spec.dtype.itemsize) for spec in shapes.values())


@dataclass(frozen=True)
class Plan(Generic[ConfigT]):
    """What a container will hold.

    Attributes:
        counts: Images of each class, in the order of the classes.
        config: The settings, with every size filled in.
    """

    counts: tuple[int, ...]
    config: ConfigT


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, where all smaller ones fit too; 0 if 1 does not fit.

    Raises:
        PluginContractError: If there is no limit.
    """
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
        if high > MOST:
            raise PluginContractError("any number of images would fit: what is stored does not grow with it")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def parts_of_images(counts: Sequence[int], parts: int) -> tuple[Tensor, Tensor]:
    """For sets in which every stored item is decoded to several images: the part and the item of each image.

    Within a class the first part of all its items comes first, then the second part of all, and so on.

    Args:
        counts: Images of each class, multiples of ``parts``.
        parts: Images that one item is decoded to.

    Returns:
        Part (0 to ``parts - 1``) and number of the item; int64, ``(N,)`` each.
    """
    part, item, first = [], [], 0
    for items in (count // parts for count in counts):
        part.append(torch.arange(parts).repeat_interleave(items, output_size=parts * items))
        item.append(torch.arange(first, first + items).repeat(parts))
        first += items
    return torch.cat(part), torch.cat(item)


class Planned(ABC, Generic[ConfigT]):
    """What a container stores, as arithmetic on shapes: no instance, no tensor."""

    @classmethod
    @abstractmethod
    def shapes(cls, data: DataSpec, counts: Sequence[int], config: ConfigT) -> Shapes:
        """Shapes and types of all stored tensors, by name.

        Args:
            data: The data set's spec.
            counts: Images of each class.
            config: The settings, resolved.
        """

    @classmethod
    def resolve(cls, data: DataSpec, budget: StorageBudget, config: ConfigT, cost: Cost) -> ConfigT:
        """Fills in the sizes that a configuration leaves open, and refuses what the data set does not allow.

        What it returns is stored, so that a file does not depend on how sizes are searched for.
        """
        del data, budget, cost
        return config

    @classmethod
    def images_per_unit(cls, config: ConfigT) -> int:
        """Images that one stored item is decoded to: the counts are multiples of it."""
        del config
        return 1

    @classmethod
    def plan(cls, data: DataSpec, budget: StorageBudget, config: ConfigT, cost: Cost) -> Plan[ConfigT]:
        """As many images as fit into the budget, equally many of each class.

        Raises:
            BudgetTooSmall: If not one image per class fits.
        """
        config = cls.resolve(data, budget, config, cost)
        unit = cls.images_per_unit(config)
        units = largest(lambda units: cls.price(data, units * unit, config, cost) <= budget.bits)
        if not units:
            needed = -(-cls.price(data, unit, config, cost) // FLOAT32_BITS)
            parts = cls.shapes(data, (unit,) * data.num_classes, config)
            listed = ", ".join(f"{name} {spec.elements}" for name, spec in parts.items())
            raise BudgetTooSmall(
                f"{cls.__name__} does not fit: {unit} decoded {'image' if unit == 1 else 'images'} of each class take "
                f"{needed} elements ({listed}), but the budget is {budget.elements} elements"
            )
        return Plan((units * unit,) * data.num_classes, config)

    @classmethod
    @final
    def price(cls, data: DataSpec, images: int, config: ConfigT, cost: Cost) -> int:
        """Bits of a set of so many images of each class."""
        counts = (images,) * data.num_classes
        return cost(cls.shapes(data, counts, config), sum(counts))
