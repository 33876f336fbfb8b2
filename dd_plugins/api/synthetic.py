"""A decoded synthetic set: images and their targets."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dd_plugins.api.data import DataSpec
from dd_plugins.api.storage import StorageLedger


@dataclass(frozen=True)
class SyntheticSet:
    """Decoded images, as a benchmark scores them.

    Attributes:
        name: What made it, for tables.
        data: The spec of the data set that was distilled.
        images: Float, ``(N, C, H, W)``, model space.
        targets: int64, ``(N,)``.
        ledger: What was stored to get them.
    """

    name: str
    data: DataSpec
    images: Tensor
    targets: Tensor
    ledger: StorageLedger
