"""From the raw data of a plugin to `RealData`: checked, measured, split and fingerprinted."""

from __future__ import annotations

import hashlib
import logging

import torch
from torch import Generator, Tensor

from dd_plugins.api import DataError, DataSpec, RawData, RealData, Split
from dd_plugins.datasets.messages import first_of
from dd_plugins.seeds import make_generator, seed_for

VALIDATION_SHARE = 10  # one training image in ten is held out ...
VALIDATION_ROWS = 5000  # ... but no more than this in all
MIN_STD = 1 / 255  # less than one grey level is rounding, and dividing by it would blow it up
CHUNK = 2**20  # pixels that are counted at a time

logger = logging.getLogger(__name__)


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
