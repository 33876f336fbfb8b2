"""The data sets that torchvision knows: read from disk, or downloaded on first use."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dd_plugins.api import ArtifactStore, Conventions, DataError, Dataset, RawData, locked
from dd_plugins.datasets.layout import parquet_files
from dd_plugins.datasets.parquet import ParquetConfig, read_parquet
from dd_plugins.errors import is_out_of_memory

DIGITS = tuple("0123456789")


class TorchvisionSet(Dataset):
    """Base of the data sets below; ``root`` is laid out as torchvision lays it out.

    If the folder ``root/<name>`` holds parquet files, these are read instead.

    Attributes:
        name: The data set's name.
        source: The class in ``torchvision.datasets``.
        files: What to put under ``root`` by hand where there is no network.
        num_classes: Number of classes.
        image_shape: ``(C, H, W)``.
        mean: Per-channel mean that the literature uses.
        std: Per-channel standard deviation that the literature uses.
        mirror: Whether labels survive mirroring.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    files: ClassVar[str]
    num_classes: ClassVar[int] = 10
    image_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    mirror: ClassVar[bool] = True

    class Config(ParquetConfig):
        """Where parquet files are read: their configuration and columns."""

    config: Config

    def conventions(self) -> Conventions:
        """Classes, image shape and the statistics that the literature uses."""
        return Conventions(self.num_classes, self.image_shape, self.mean, self.std, self.mirror)

    def read(self, root: Path, artifacts: ArtifactStore) -> RawData:
        """Reads the data set, and downloads it first if it is not under ``root``.

        Args:
            root: Folder under which data sets are kept.
            artifacts: Keeps decoded copies of parquet files.

        Returns:
            uint8 images ``(N, C, H, W)`` and int64 labels.

        Raises:
            DataError: If the files are damaged, or missing and cannot be downloaded; says where to put them.
        """
        folder = root / self.name
        if parquet_files(folder):
            raw = read_parquet(folder, artifacts, parquet=self.config)
            return replace(raw, mean=self.mean, std=self.std, mirror=self.mirror)
        try:
            with self._locked(root):
                train, test = self._load(root, train=True), self._load(root, train=False)
        except Exception as error:  # torchvision raises anything from URLError to AssertionError
            if is_out_of_memory(error):
                raise
            raise DataError(
                f"{self.name}: cannot be read or downloaded ({' '.join(str(error).split())}); "
                f"put {self.files} under {root}, or parquet files into {folder}"
            ) from error
        return RawData(
            *_tensors(train),
            *_tensors(test),
            class_names=tuple(getattr(train, "classes", DIGITS)),
            mean=self.mean,
            std=self.std,
            mirror=self.mirror,
            origin="torchvision",
        )

    def _locked(self, root: Path) -> AbstractContextManager[None]:
        """Keeps two processes from downloading the same files; nothing is downloaded to a read-only folder."""
        if root.exists() and not os.access(root, os.W_OK):
            return nullcontext()
        return locked(root / f".{self.name}.lock", f"the files of {self.name}")

    def _load(self, root: Path, train: bool) -> Any:
        return _source(self.source)(root, train=train, download=True)


class Mnist(TorchvisionSet):
    """The data set ``mnist``: 10 classes of handwritten digits, ``(1, 28, 28)``, 60,000 train and 10,000 test."""

    api_version = 2
    name = "mnist"
    source = "MNIST"
    files = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    image_shape = (1, 28, 28)
    mean = (0.1307,)
    std = (0.3081,)
    mirror = False


class FashionMnist(TorchvisionSet):
    """The data set ``fashion-mnist``: 10 classes of clothes, ``(1, 28, 28)``, 60,000 train and 10,000 test."""

    api_version = 2
    name = "fashion-mnist"
    source = "FashionMNIST"
    files = "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    image_shape = (1, 28, 28)
    mean = (0.2861,)
    std = (0.3530,)


class Svhn(TorchvisionSet):
    """The data set ``svhn``: 10 classes of house numbers, ``(3, 32, 32)``, 73,257 train and 26,032 test, no extra."""

    api_version = 2
    name = "svhn"
    source = "SVHN"
    files = "train_32x32.mat and test_32x32.mat"
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)
    mirror = False

    def _load(self, root: Path, train: bool) -> Any:
        return _source(self.source)(root, split="train" if train else "test", download=True)


class Cifar10(TorchvisionSet):
    """The data set ``cifar10``: 10 classes, ``(3, 32, 32)``, 50,000 train and 10,000 test."""

    api_version = 2
    name = "cifar10"
    source = "CIFAR10"
    files = "the folder cifar-10-batches-py"
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)


class Cifar100(TorchvisionSet):
    """The data set ``cifar100``: 100 classes, ``(3, 32, 32)``, 50,000 train and 10,000 test."""

    api_version = 2
    name = "cifar100"
    source = "CIFAR100"
    files = "the folder cifar-100-python"
    num_classes = 100
    mean = (0.5071, 0.4866, 0.4409)
    std = (0.2673, 0.2564, 0.2762)


def _source(name: str) -> Any:
    from torchvision import datasets  # a second to import, and not needed for parquet files

    return getattr(datasets, name)


def _tensors(data: Any) -> tuple[Tensor, Tensor]:
    """Images as ``(N, C, H, W)`` and labels, from the arrays that torchvision's classes keep."""
    images = torch.as_tensor(data.data)
    if images.dim() == 3:  # grey: (N, H, W)
        images = images[:, None]
    elif images.shape[-1] == 3:  # CIFAR: (N, H, W, C)
        images = images.permute(0, 3, 1, 2)
    labels = data.labels if hasattr(data, "labels") else data.targets
    return images, torch.as_tensor(labels, dtype=torch.int64)
