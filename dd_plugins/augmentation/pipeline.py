"""Families of differentiable augmentation, drawn as explicit records and applied without a loop over images.

Source:
    DSA: Zhao & Bilen, ICML 2021, arXiv 2102.08259, strategy "S": one operation a call.
    IDC: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, arXiv 2205.14959:
    flip and colour always, one of crop, scale and rotate, then cutout.
Deviations:
    None in the maths; a `Draw` can be applied to any batch again, which replaces seeding (siamese augmentation).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dd_plugins.api import ConfigError, DataSpec
from dd_plugins.augmentation.ops import NOISE_COLUMNS, OPERATIONS


@dataclass(frozen=True)
class Draw:
    """What was drawn for one call: apply it to several batches and they are augmented alike.

    Attributes:
        choice: int64, ``(R, slots)``, on the CPU: which operation each slot takes, for each record.
        noise: Float, ``(R, 11)``, on the CPU: uniform in [0, 1), the parameters of all operations.
    """

    choice: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.noise)


class Augmentation:
    """A sequence of slots, each of which applies one operation of its own list.

    Example:
        >>> import torch
        >>> from dd_plugins.augmentation import Augmentation
        >>> augment = Augmentation.dsa("color_crop_cutout_flip_scale_rotate")
        >>> draw = augment.draw(1, torch.Generator())
        >>> augment(torch.zeros(2, 3, 32, 32), draw).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, slots: tuple[tuple[str, ...], ...]) -> None:
        self.slots = slots

    @classmethod
    def dsa(cls, strategy: str) -> Augmentation:
        """DSA's family: one operation a call, out of a strategy such as ``color_crop_cutout_flip_scale_rotate``."""
        names = _parse(strategy)
        return cls((names,) if names else ())

    @classmethod
    def idc(cls, strategy: str) -> Augmentation:
        """IDC's family: flip and colour always, one of crop, scale and rotate, then cutout, as far as named."""
        names = _parse(strategy)
        one_of = tuple(name for name in names if name in ("crop", "scale", "rotate"))
        slots = (("flip",), ("color",), one_of, ("cutout",))
        return cls(tuple(slot for slot in slots if slot and (slot is one_of or slot[0] in names)))

    def draw(self, count: int, generator: Generator, *, one_choice: bool = True) -> Draw:
        """Draws ``count`` records.

        Args:
            count: 1 for a whole batch alike (siamese), the number of images for a record each, or of classes.
            generator: On the CPU, so that the same seed draws the same on every device.
            one_choice: Whether all records share the choice of operations, as DSA's batches do.
        """
        rows = 1 if one_choice else count
        choice = [torch.randint(len(slot), (rows, 1), generator=generator) for slot in self.slots]
        noise = torch.rand(count, NOISE_COLUMNS, generator=generator)
        joined = torch.cat(choice, dim=1) if choice else torch.zeros(rows, 0, dtype=torch.int64)
        return Draw(joined.expand(count, -1), noise)

    def __call__(self, images: Tensor, draw: Draw, rows: Tensor | None = None) -> Tensor:
        """Augments images.

        Args:
            images: Float, ``(B, C, H, W)``, model space.
            draw: Of one record (for all images), of ``B`` records, or of any number with ``rows``.
            rows: int64, ``(B,)``, on the CPU: the record of each image.

        Returns:
            Float, ``(B, C, H, W)``, differentiable with respect to ``images``.
        """
        if rows is None and len(draw) not in (1, len(images)):
            raise ValueError(f"Expected 1 or {len(images)} records for {len(images)} images, but got {len(draw)}")
        if rows is not None:
            rows = rows[:1] if bool((rows == rows[0]).all()) else rows  # one record for all: siamese
            draw = Draw(draw.choice[rows], draw.noise[rows])
        choice, noise = draw.choice, draw.noise.to(images.device, images.dtype)
        for position, slot in enumerate(self.slots):
            images = _apply(images, slot, choice[:, position], noise)
        return images


def default_strategy(data: DataSpec) -> str:
    """The field's DSA strategy for a data set: all six operations, without the mirror where it changes labels."""
    return "color_crop_cutout_flip_scale_rotate" if data.mirror else "color_crop_cutout_scale_rotate"


def _apply(images: Tensor, slot: tuple[str, ...], choice: Tensor, noise: Tensor) -> Tensor:
    if len(slot) == 1 or bool((choice == choice[0]).all()):
        operation, columns = OPERATIONS[slot[int(choice[0])]]
        return operation(images, noise[:, columns])
    # Images that take the same operation are brought together, so that each operation runs once.
    order = torch.argsort(choice, stable=True)
    sizes = torch.bincount(choice, minlength=len(slot)).tolist()
    device_order = order.to(images.device)
    groups = zip(
        slot, torch.split(images[device_order], sizes), torch.split(noise[device_order], sizes), strict=True
    )  # fmt: skip
    done = [OPERATIONS[name][0](part, u[:, OPERATIONS[name][1]]) for name, part, u in groups if len(part)]
    return torch.cat(done)[torch.argsort(device_order)]


def _parse(strategy: str) -> tuple[str, ...]:
    if strategy in ("", "none"):
        return ()
    names = tuple(strategy.split("_"))
    unknown = sorted(set(names) - set(OPERATIONS))
    if unknown:
        raise ConfigError(f"unknown augmentation {', '.join(unknown)} in {strategy!r}; known: {', '.join(OPERATIONS)}")
    return names
