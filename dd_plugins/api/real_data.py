"""Real data as everybody reads it (`RealData`): checked, measured, split and fingerprinted."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Generator, Tensor

from dd_plugins.api.data import DataSource, DataSpec, RawData, Split
from dd_plugins.api.messages import first_of
from dd_plugins.errors import DataError
from dd_plugins.seeds import make_generator, seed_for

VALIDATION_SHARE = 10  # one training image in ten is held out ...
VALIDATION_ROWS = 5000  # ... but no more than this in all
MIN_STD = 1 / 255  # less than one grey level is rounding, and dividing by it would blow it up
CHUNK = 2**20  # pixels that are counted at a time

Pair = tuple[Any, Any]  # images and labels
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel, in [0, 1]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class RealData:
    """A data set on one device: one uint8 tensor and three fixed splits.

    ``validation`` is held out of the training images, seeded and balanced; whatever is *chosen* is chosen on it.
    Condensation sees ``train`` alone, and ``test`` is touched once, by the evaluator. ``notes`` and ``skipped`` are
    those of `RawData`; ``source`` says how it was loaded.
    """

    spec: DataSpec
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    source: DataSource = field(default_factory=DataSource)

    @classmethod
    def from_tensors(
        cls,
        train: Pair,
        test: Pair,
        name: str = "tensors",
        class_names: Sequence[str] | None = None,
        *,
        mirror: bool = True,
        statistics: Statistics | None = None,
        device: str | torch.device = "cpu",
    ) -> RealData:
        """A data set of images that are in memory; splits and fingerprint are those that `load_dataset` gives.

        Args:
            train: Images and labels. Images: uint8, or float from 0 to 1 (rounded to 8 bits), ``(N, C, H, W)``;
                labels: integers from 0 to ``classes - 1``, ``(N,)``. Tensors, or what ``torch.as_tensor`` takes.
            test: The same.
            name: For tables; a known name such as ``cifar10`` applies the published settings of that data set.
            class_names: One name a class; by default numbers.
            mirror: Whether an image keeps its label when mirrored left to right.
            statistics: Mean and standard deviation of each channel, in [0, 1]; measured on ``train`` by default.
            device: Where images and labels shall be.

        Raises:
            DataError: If shapes, types or values are not as described.

        Example:
            >>> images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
            >>> RealData.from_tensors((images, labels), (images, labels)).spec.num_classes
            2
        """
        train_images, train_labels = _images(train[0], "train"), _labels(train[1], "train")
        test_images, test_labels = _images(test[0], "test"), _labels(test[1], "test")
        names = tuple(class_names or map(str, range(1 + int(train_labels.max()) if len(train_labels) else 0)))
        mean, std = statistics or (None, None)
        raw = RawData(train_images, train_labels, test_images, test_labels, names, mean, std, mirror, origin="tensors")
        real = build_real_data(name, raw, device)
        return replace(real, source=DataSource("", {}, real.class_names))

    @classmethod
    def from_dataset(
        cls,
        train: Iterable[tuple[Any, int]],
        test: Iterable[tuple[Any, int]],
        name: str = "dataset",
        class_names: Sequence[str] | None = None,
        *,
        mirror: bool = True,
        statistics: Statistics | None = None,
        device: str | torch.device = "cpu",
    ) -> RealData:
        """A data set read from two torch data sets of ``(image, label)`` pairs, such as those of torchvision.

        Args:
            train: Pairs of a PIL image, or of an array or tensor as in `from_tensors` (``(C, H, W)``), and an integer.
            test: The same.
            name: As for `from_tensors`, like all other arguments.
            class_names: By default the ``classes`` of ``train``, if it has them.
            mirror: As for `from_tensors`.
            statistics: As for `from_tensors`.
            device: As for `from_tensors`.

        Raises:
            DataError: If images differ in shape, or are not as described; names the first rows.
        """
        names = class_names if class_names is not None else getattr(train, "classes", None)
        pairs = _stacked(train, "train"), _stacked(test, "test")
        return cls.from_tensors(*pairs, name, names, mirror=mirror, statistics=statistics, device=device)

    def __repr__(self) -> str:
        """Name, classes, shape and the sizes of the splits."""
        spec, sizes = self.spec, f"{len(self.train)} train, {len(self.validation)} validation, {len(self.test)} test"
        return f"RealData({spec.name!r}, {spec.num_classes} classes of {spec.image_shape}, {sizes}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the images live."""
        return self.train.pixels.device


def build_real_data(name: str, raw: RawData, device: str | torch.device = "cpu", who: str = "") -> RealData:
    """Checks what a plugin delivered and makes the data set that everybody else reads.

    The pixels stay uint8, ``(train + test, C, H, W)``, in one tensor on ``device``. A validation split is held out of
    the training images, a tenth of every class (at least one image, in all at most 5000), always the same ones.

    Args:
        name: The data set's name in tables and in stored sets.
        raw: The plugin's images and labels.
        device: Where pixels, labels and indices shall live.
        who: The plugin's name in error messages; ``name`` if empty.

    Returns:
        The data set, with its mean and standard deviation measured on the training images where ``raw`` has none.

    Raises:
        DataError: If ``raw`` breaks its contract: what was expected, what was found, and where first.
    """
    num_classes = check_raw(raw, who or name)
    generator = make_generator(seed_for("datasets", "validation"))
    train, held = hold_out(raw.train_labels, _validation_counts(raw, num_classes), generator)
    test = torch.arange(len(raw.test_images)) + len(raw.train_images)
    pixels = _joined(raw.train_images, raw.test_images)
    labels = torch.cat([raw.train_labels, raw.test_labels]).cpu()
    mean, std = raw.mean, raw.std
    if mean is None or std is None:
        measured = channel_statistics(raw.train_images)
        mean, std = mean or measured[0], std or measured[1]
    spec = DataSpec(
        name=name,
        num_classes=num_classes,
        image_shape=(pixels.shape[1], pixels.shape[2], pixels.shape[3]),
        mean=mean,
        std=std,
        mirror=raw.mirror,
        fingerprint=_fingerprint((mean, std, raw.mirror), pixels, labels, train, held, test),
        origin=raw.origin,
    )
    pixels = pixels.to(device)

    def split(rows: Tensor) -> Split:
        return Split(spec, pixels, labels[rows].to(device), rows.to(device))

    for note in raw.notes:
        logger.warning("%s: %s", who or name, note)
    return RealData(spec, tuple(raw.class_names), split(train), split(held), split(test), raw.notes, raw.skipped)


def check_raw(raw: RawData, who: str) -> int:
    """Checks a plugin's delivery against the contract of `RawData` and returns the number of classes.

    Args:
        raw: The plugin's images and labels.
        who: The plugin's name in error messages.

    Raises:
        DataError: Names the plugin, what was expected and what was found, with the first offending row.
    """
    if not isinstance(raw, RawData):
        raise DataError(f"data set {who}: expected its read() to return RawData, but found {type(raw).__name__}")
    num_classes = len(raw.class_names)
    if num_classes < 2:
        raise DataError(f"data set {who}: expected two classes at least, but found {num_classes}")
    for split, images, labels in (
        ("train", raw.train_images, raw.train_labels),
        ("test", raw.test_images, raw.test_labels),
    ):
        _check_split(images, labels, num_classes, f"data set {who}: {split}")
    shape, test_shape = tuple(raw.train_images.shape[1:]), tuple(raw.test_images.shape[1:])
    if shape != test_shape:
        raise DataError(f"data set {who}: expected test images of shape {shape} as in train, but found {test_shape}")
    for key, values in (("mean", raw.mean), ("std", raw.std)):
        if values is not None and len(values) != shape[0]:
            raise DataError(f"data set {who}: expected {shape[0]} values of {key}, one per channel, but found {values}")
    sizes = torch.bincount(raw.train_labels, minlength=num_classes)
    few = (sizes < 2).nonzero()[:, 0].tolist()
    if few:
        found = [f"{int(sizes[label])} of class {label} ({raw.class_names[label]})" for label in few]
        raise DataError(
            f"data set {who}: expected at least 2 training images per class, one of them for validation, "
            f"but found {first_of(found, ', ')}"
        )
    return num_classes


def hold_out(labels: Tensor, counts: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Splits rows in two at random, class by class.

    Args:
        labels: int64, ``(N,)``.
        counts: int64, ``(num_classes,)``: how many rows of each class to hold out.
        generator: On the CPU.

    Returns:
        The rows that stay and the rows held out, each int64 and sorted.
    """
    noise = torch.rand(len(labels), generator=generator).double()
    order = torch.argsort(noise + labels, stable=True)  # by class, and at random within a class
    sizes = torch.bincount(labels, minlength=len(counts))
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    held = rank < counts[labels[order]]
    return order[~held].sort().values, order[held].sort().values


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, in [0, 1].

    Args:
        images: uint8, ``(N, C, H, W)``.

    Returns:
        Two tuples of length C; the standard deviation divides by the number of pixels and is at least 1/255.
    """
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)  # of every value: exact, whatever the order
    for part in images.split(max(1, CHUNK * len(images) // max(1, images.numel()))):
        for channel in range(channels):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256).cpu()
    values, pixels = torch.arange(256), images.numel() // channels
    first, second = (counts * values).sum(1).double() / pixels, (counts * values.square()).sum(1).double() / pixels
    std = (second - first.square()).clamp(min=0).sqrt() / 255
    return tuple((first / 255).tolist()), tuple(std.clamp(min=MIN_STD).tolist())


def _joined(train: Tensor, test: Tensor) -> Tensor:
    """Both on the CPU in one tensor; without a copy if they are one after the other already."""
    start, size = train.storage_offset(), train.numel()
    if (
        train.device.type == "cpu"
        and train.untyped_storage().data_ptr() == test.untyped_storage().data_ptr()
        and train.is_contiguous()
        and test.is_contiguous()
        and test.storage_offset() == start + size
    ):
        return train.as_strided((len(train) + len(test), *train.shape[1:]), train.stride(), start)
    return torch.cat([train, test]).cpu()


def _check_split(images: Tensor, labels: Tensor, num_classes: int, where: str) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.numel():
        found = f"{type(images).__name__} of {images.dtype}, shape {tuple(images.shape)}"
        raise DataError(f"{where}: expected a uint8 tensor of images, shape (N, C, H, W) with N > 0, but found {found}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        found = f"{type(labels).__name__} of {labels.dtype}, shape {tuple(labels.shape)}"
        raise DataError(f"{where}: expected an int64 tensor of labels, shape ({len(images)},), but found {found}")
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: expected labels from 0 to {num_classes - 1} for its {num_classes} class names, "
            f"but found {int(labels[row])} in row {row}"
        )


def _validation_counts(raw: RawData, num_classes: int) -> Tensor:
    sizes = torch.bincount(raw.train_labels, minlength=num_classes)
    # A tenth, or VALIDATION_ROWS / N where that is less: in integers, so that no machine rounds differently.
    return (sizes * VALIDATION_ROWS // max(len(raw.train_labels), VALIDATION_ROWS * VALIDATION_SHARE)).clamp(min=1)


def _fingerprint(settings: object, *parts: Tensor) -> str:
    """Hash of all that decides what a network sees: model space, mirroring, pixels, labels and splits."""
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in parts:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


# ---- images and labels in memory -------------------------------------------------------------------------------------


def _tensor(values: Any, where: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: expected a tensor or an array, but got {type(values).__name__} ({error})") from None


def _images(values: Any, split: str) -> Tensor:
    """uint8, ``(N, C, H, W)``."""
    images = _tensor(values, f"{split} images")
    shape = tuple(images.shape)
    if images.dim() != 4 or not images.numel():
        raise DataError(f"{split} images: expected shape (N, C, H, W) with N > 0, but got {shape}")
    if shape[1] > 4 and shape[3] <= 4:
        raise DataError(f"{split} images: expected shape (N, C, H, W), but got {shape}; use images.permute(0, 3, 1, 2)")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{split} images: expected uint8, or float from 0 to 1, but got {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise DataError(f"{split} images: expected float values from 0 to 1, but got {low:g} to {high:g}")
    return images.mul(255).round().to(torch.uint8)


def _labels(values: Any, split: str) -> Tensor:
    """int64, ``(N,)``."""
    labels = _tensor(values, f"{split} labels")
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        found = f"{labels.dtype}, shape {tuple(labels.shape)}"
        raise DataError(f"{split} labels: expected integers of shape (N,), but got {found}")
    return labels.to(torch.int64)


def _stacked(pairs: Iterable[tuple[Any, int]], split: str) -> Pair:
    """The images of a data set as one uint8 tensor, and its labels."""
    images: list[Tensor] = []
    labels: list[int] = []
    faults: list[str] = []
    for row, (image, label) in enumerate(pairs):
        try:
            array = torch.as_tensor(numpy.array(image)) if isinstance(image, Image.Image) else _tensor(image, "image")
            if isinstance(image, Image.Image):
                array = array[None] if array.dim() == 2 else array.permute(2, 0, 1)
            (found,) = _images(array[None], "one")
            if images and found.shape != images[0].shape:
                raise DataError(f"shape {tuple(found.shape)}, the first has {tuple(images[0].shape)}")
            images.append(found)
            labels.append(int(label))
        except (DataError, TypeError, ValueError) as error:
            faults.append(f"row {row}: {error}")
    if faults:
        raise DataError(f"{split}: {len(faults)} bad images: {first_of(faults)}")
    if not images:
        raise DataError(f"{split}: expected at least one image, but got none")
    return torch.stack(images), torch.tensor(labels)
