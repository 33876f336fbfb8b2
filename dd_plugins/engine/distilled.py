"""A stored synthetic set, rebuilt from its file alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dd_plugins import registry
from dd_plugins.api import (
    DataSpec,
    Parameterization,
    StorageLedger,
    SyntheticFileError,
    SyntheticSet,
    read_stored,
    write_atomically,
)
from dd_plugins.api.reading import check_regular
from dd_plugins.datasets import pixel_values
from dd_plugins.engine.display import grid_html, table_html

if TYPE_CHECKING:
    from dd_plugins.engine.distillation import History
    from dd_plugins.engine.pruning import PruningReport


def load_stored(source: Path | bytes) -> Parameterization:
    """Rebuilds a container from its file alone, finding its class by the name in the file.

    Args:
        source: The file, or its bytes.

    Raises:
        SyntheticFileError: If the file is damaged.
        UntrustedPluginError: If it names a ``module:Class`` that the user has not named.
    """
    header, _ = read_stored(source)
    loaded: Parameterization = registry.load("parameterization", header.plugin).load(source)
    return loaded


class Distilled:
    """A synthetic set as its file holds it.

    Attributes:
        content: The bytes of the file.
        container: The parameterization, rebuilt from these bytes.
        name: What made it, for tables and messages.
        history: Steps, times and losses of its condensation; None for a set that was loaded.
        pruning: What its pruning did; None if it was not pruned, or was loaded.
    """

    def __init__(
        self,
        content: bytes,
        *,
        name: str | None = None,
        device: str | torch.device = "cpu",
        history: History | None = None,
        pruning: PruningReport | None = None,
    ) -> None:
        """Rebuilds a set.

        Args:
            content: The bytes of its file.
            name: By default that of its parameterization.
            device: Where images and targets are.
            history: Of its condensation.
            pruning: What its pruning did.

        Raises:
            SyntheticFileError: If the bytes are damaged.
            StorageBudgetExceeded: If they hold more than the budget that they name.
        """
        self.content = content
        self.container = load_stored(content).to(torch.device(device))
        self.name = name or read_stored(content)[0].plugin
        self.history, self.pruning = history, pruning
        self.storage.enforce(self.container.budget.scaled(self.container.budget_ratio()), self.name)

    @classmethod
    def load(cls, source: str | Path | bytes, device: str | torch.device = "cpu") -> Distilled:
        """Reads a set from its file, from the folder of a run, or from the bytes of a file; needs no real data.

        Raises:
            SyntheticFileError: If there is no such file, or if it is damaged.
        """
        if isinstance(source, bytes):
            return cls(source, device=device)
        path = Path(source).expanduser()
        path = path / "synthetic.safetensors" if path.is_dir() else path
        check_regular(path, SyntheticFileError)
        read_stored(path)  # a damaged file is reported by its path
        return cls(path.read_bytes(), device=device)

    def save(self, path: str | Path) -> None:
        """Writes the file of the set: a safetensors file, written to a temporary one first and renamed."""
        write_atomically(Path(path).expanduser(), self.content)

    # ---- what it holds ----------------------------------------------------------------------------------------------

    @property
    def spec(self) -> DataSpec:
        """The data set that was distilled: classes, image shape, mean, standard deviation."""
        return self.container.data

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; their numbers, as text, if the names are not known."""
        return self.container.data_source.names(self.spec.num_classes)

    @property
    def storage(self) -> StorageLedger:
        """What is stored, tensor by tensor."""
        return self.container.storage()

    @property
    def ipc(self) -> float:
        """The budget in images per class: elements / (classes x C x H x W)."""
        return self.container.budget.elements / (self.spec.num_classes * prod(self.spec.image_shape))

    @cached_property
    def images(self) -> Tensor:
        """All images as networks see them: float, ``(N, C, H, W)``, model space; decoded once."""
        with torch.no_grad():
            return self.container.decode()

    @property
    def targets(self) -> Tensor:
        """The class of each image: int64, ``(N,)``."""
        return self.container.labels

    def synthetic_set(self) -> SyntheticSet:
        """The set as benchmarks score it."""
        return SyntheticSet(self.name, self.spec, self.images, self.targets, self.storage)

    def as_dataset(self, transform: Callable[[Tensor], Any] | None = None) -> DistilledDataset:
        """A torch ``Dataset`` of ``(image, class)`` pairs with images in pixel values from 0 to 1.

        Args:
            transform: Applied to each image: float, ``(C, H, W)``.

        Raises:
            DataError: If the set is whitened and the matrix that gives its colours is not cached.
        """
        pixels = pixel_values(self.images.cpu(), self.spec).clamp(0, 1)
        return DistilledDataset(pixels, self.targets.cpu(), self, transform)

    # ---- how it is shown --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """The number of decoded images."""
        return len(self.targets)

    def __repr__(self) -> str:
        """Name, data set, images and storage in one line."""
        return (
            f"Distilled({self.name!r}, {self.spec.name}, {len(self):,} images of {self.spec.num_classes} classes, "
            f"{self.storage.elements:,} elements, {self.storage.nbytes:,} bytes, IPC {self.ipc:g})"
        )

    def _repr_html_(self) -> str:
        """A table of sizes and an image grid, one row a class, for notebooks."""
        rows = {
            "data set": f"{self.spec.name}, {self.spec.num_classes} classes of {self.spec.image_shape}",
            "images": f"{len(self):,} decoded",
            "storage": f"{self.storage.elements:,} elements, {self.storage.nbytes:,} bytes (IPC {self.ipc:g})",
        }
        return table_html(self.name, rows, grid_html(self.images, self.targets, self.spec))


class DistilledDataset(Dataset[tuple[Any, int]]):
    """Decoded images of a synthetic set, as ``torchvision`` data sets are.

    Attributes:
        images: Float, ``(N, C, H, W)``, pixel values from 0 to 1.
        targets: int64, ``(N,)``.
        classes: One name a class.
        mean: Of each channel, for ``torchvision.transforms.Normalize(dataset.mean, dataset.std)``.
        std: Of each channel.
    """

    def __init__(
        self, images: Tensor, targets: Tensor, made_from: Distilled, transform: Callable[[Tensor], Any] | None
    ) -> None:
        self.images, self.targets, self.transform = images, targets, transform
        self.classes, self.mean, self.std = made_from.class_names, made_from.spec.mean, made_from.spec.std

    def __len__(self) -> int:
        """The number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image, after the transform, and its class."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), int(self.targets[index])
