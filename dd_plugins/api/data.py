"""Real data: what a data set is (`DataSpec`), how a plugin delivers it, and its splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor

from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.errors import DataError

if TYPE_CHECKING:
    from dd_plugins.api.artifacts import ArtifactStore

MAX_NAME, MAX_TEXT = 200, 4096  # characters of a class name, and of any other text that is stored with a set


@dataclass(frozen=True)
class DataSpec:
    """What a container must know about a data set.

    Attributes:
        name: The data set's name, for example ``cifar10``.
        num_classes: Number of classes; labels run from 0 to ``num_classes - 1``.
        image_shape: ``(C, H, W)``.
        mean: Per-channel mean of the training images in [0, 1].
        std: Per-channel standard deviation of the training images in [0, 1].
        mirror: Whether an image keeps its label when mirrored left to right (not so for digits).
        fingerprint: Hash of the pixels, labels and splits; two sets of one name are told apart by it.
        origin: Where the pixels came from, for tables: ``torchvision``, ``parquet``, ``folder``.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool = True
    fingerprint: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        channels = self.image_shape[0]
        if self.num_classes < 1 or min(self.image_shape) < 1:
            raise DataError(
                f"Expected at least one class and one pixel, but got {self.num_classes}, {self.image_shape}"
            )
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise DataError(f"Expected {channels} means and positive stds, but got {self.mean} and {self.std}")

    @property
    def whitened(self) -> bool:
        """Whether model space is ZCA-whitened: then ``mean`` and ``std`` do not give an image its colours."""
        return self.origin.endswith("ZCA")

    @property
    def image_bytes(self) -> int:
        """Bytes of one image in model space, float32."""
        return prod(self.image_shape) * torch.float32.itemsize

    @classmethod
    def example(cls) -> DataSpec:
        """A tiny spec for documentation and tests: 2 classes of 8x8 grey images."""
        return cls("example", 2, (1, 8, 8), (0.5,), (0.25,))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        """Rebuilds a spec from JSON, where tuples have become lists."""
        names = {one.name for one in fields(cls)}
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return asdict(self)

    def normalize(self, images: Tensor) -> Tensor:
        """Maps ``images`` (``(N, C, H, W)``, uint8 or float in [0, 1]) to model space: ``(x - mean) / std``."""
        scaled = images.float().div_(255) if images.dtype == torch.uint8 else images
        mean, std = _statistics(self.mean, self.std, images.device)
        return (scaled - mean) / std

    def denormalize(self, images: Tensor) -> Tensor:
        """Maps ``images`` (float, ``(N, C, H, W)``, model space) back to pixel values, unclipped."""
        mean, std = _statistics(self.mean, self.std, images.device)
        return images * std + mean


@lru_cache(maxsize=64)
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Both as ``(1, C, 1, 1)``, copied to a device once: a copy in every step would stall a GPU."""
    with torch.inference_mode(False):
        both = torch.tensor([mean, std], device=device).view(2, 1, -1, 1, 1)
    return both[0], both[1]


@dataclass(frozen=True)
class DataSource:
    """Which data set was loaded, in the words of who loaded it; stored with a set, so that it explains itself.

    Attributes:
        dataset: As for `load_dataset`: a name, ``folder:PATH``; a path is kept as it was written.
        settings: Settings of the data set, such as ``{"size": 32}``.
        class_names: One name a class, in the order of the labels; empty if nobody knows them.

    Texts are kept as files can hold them: cut to a length, and without NUL or what is no Unicode.
    """

    dataset: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(_plain(name, MAX_NAME) for name in self.class_names)
        object.__setattr__(self, "class_names", names)
        object.__setattr__(self, "dataset", _plain(self.dataset, MAX_TEXT))

    def names(self, num_classes: int) -> tuple[str, ...]:
        """One name a class; their numbers, as text, where the names are not known."""
        return self.class_names or tuple(map(str, range(num_classes)))


def _plain(text: str, longest: int) -> str:
    return text[:longest].replace("\0", "?").encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class RawData:
    """What a data-set plugin delivers: decoded images, labels, and what is known about them.

    Attributes:
        train_images: uint8, ``(N, C, H, W)``.
        train_labels: int64, ``(N,)``.
        test_images: uint8, ``(M, C, H, W)``.
        test_labels: int64, ``(M,)``.
        class_names: One name per class.
        mean: Per-channel mean in [0, 1], for example as in the literature; None: measured on the training images.
        std: Per-channel standard deviation, or None in the same way.
        mirror: Whether labels survive mirroring.
        origin: Where the pixels came from.
        notes: What a user should know about how the data was read; logged as warnings.
        skipped: Images that were left out, with the reason.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    mirror: bool = True
    origin: str = ""
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conventions:
    """What publications use for a named data set; the setting ``data.as`` applies it to the same data from elsewhere.

    Attributes:
        num_classes: Number of classes.
        image_shape: ``(C, H, W)``.
        mean: Per-channel mean in [0, 1], or None to measure it on the training images.
        std: Per-channel standard deviation, or None in the same way.
        mirror: Whether an image keeps its label when mirrored left to right.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    mirror: bool = True


class Dataset(ABC):
    """A data-set plugin: reads real images from disk.

    Attributes:
        argument: What stood behind the colon of a spec such as ``folder:PATH``; empty for plain names.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    takes_argument: ClassVar[bool] = False
    check_settings: ClassVar[Mapping[str, Any]] = {}  # what conformance checks run with, where defaults take long

    class Config(PluginConfig):
        """Settings of the data set; none by default."""

    def __init__(self, argument: str = "", config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        self.argument = argument
        self.config: PluginConfig = parse_config(type(self).Config, config, "data")

    def conventions(self) -> Conventions | None:
        """What publications use for this data set, without reading it; None if there is nothing of the kind."""
        return None

    @abstractmethod
    def read(self, root: Path, artifacts: ArtifactStore) -> RawData:
        """Reads the whole data set.

        Args:
            root: Folder under which data sets are kept (``--data-root``).
            artifacts: Makes and keeps what is costly, such as decoded images.

        Raises:
            DataError: If a file is missing or damaged, naming it.
        """


@dataclass(frozen=True)
class Split:
    """One split of a data set: rows of the one shared uint8 tensor.

    Attributes:
        spec: The data set's spec.
        pixels: uint8, ``(all rows, C, H, W)``, shared between splits and never copied; of a whitened data set float.
        labels: int64, ``(N,)``.
        index: int64, ``(N,)``: the rows of ``pixels`` that belong to this split.
    """

    spec: DataSpec
    pixels: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def images(self, rows: Tensor | None = None) -> Tensor:
        """Images in model space: float, ``(len(rows), C, H, W)``; all of them without ``rows``."""
        return self.spec.normalize(self.pixels[self.index if rows is None else self.index[rows]])

    def class_sizes(self) -> list[int]:
        """The number of rows of each class."""
        sizes: list[int] = torch.bincount(self.labels, minlength=self.spec.num_classes).tolist()
        return sizes

    def class_rows(self) -> list[Tensor]:
        """For each class its rows of this split: int64, ``(N_c,)``."""
        order = torch.argsort(self.labels, stable=True)
        sizes = torch.bincount(self.labels, minlength=self.spec.num_classes)
        return list(torch.split(order, sizes.tolist()))

    def per_class(self, count: int, generator: Generator) -> Tensor:
        """Draws ``count`` rows of every class: int64, ``(num_classes, count)``.

        The draw is without replacement while it can be: a class with N < ``count`` rows gives all N in random order and
        repeats them in that order, so each row appears ``count // N`` times, and ``count % N`` of them once more. The
        draw is made where ``generator`` lives.
        """
        noise = torch.rand(len(self), generator=generator, device=generator.device).to(self.labels.device)
        # One sort gives every class its own random order: by label first, by noise within a label.
        order = torch.argsort(noise.double() + self.labels, stable=True)
        sizes = torch.bincount(self.labels, minlength=self.spec.num_classes)
        starts = sizes.cumsum(0) - sizes
        offsets = torch.arange(count, device=sizes.device) % sizes[:, None]
        rows: Tensor = order[starts[:, None] + offsets]
        return rows
