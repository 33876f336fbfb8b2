"""Many encoded images to one uint8 tensor, which is kept as an artifact."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, compress
from math import prod
from typing import BinaryIO, Literal

import numpy as np
import PIL
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from dd_plugins.api import Artifact, ArtifactFiles, ArtifactStore, ConfigError, DataError, Dataset, RawData
from dd_plugins.api.memory import require_memory
from dd_plugins.api.messages import first_items, first_of
from dd_plugins.api.progress import StartJob
from dd_plugins.api.real_data import channel_statistics, hold_out
from dd_plugins.datasets.images import EncodedImage, Header, decode_measured, read_header
from dd_plugins.errors import is_out_of_memory
from dd_plugins.names import matches, near, quoted, suggestion
from dd_plugins.seeds import make_generator, seed_for

FORMAT = 2  # of the decoded copies; a new number where the same files give other pixels

DARK = 4096  # 16-bit images whose values are all smaller have 12 bits or fewer

Images = Callable[[], Iterator[EncodedImage]]


class ImageConfig(Dataset.Config):
    """Settings of every data set of encoded images."""

    size: int | None = Field(
        default=None, ge=1, description="resize the shorter side to this, and crop the center square"
    )
    mirror: bool = Field(default=True, description="whether an image keeps its label when mirrored left to right")
    classes: tuple[int | str, ...] | None = Field(
        default=None,
        min_length=2,
        description="take these classes alone, by number or name, and number them anew in this order; None: all",
    )
    test_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="share of every class split off for testing if there is no test split"
    )
    on_error: Literal["error", "skip"] = Field(
        default="error", description="images that cannot be used: refuse the data set, or leave them out"
    )


@dataclass(frozen=True)
class EncodedSplit:
    """The images of one split before decoding.

    Attributes:
        labels: int64, ``(N,)``.
        images: Starts reading the N images from the first one; they are never held in memory together.
    """

    labels: Tensor
    images: Images


@dataclass(frozen=True)
class Decoded:
    """Images that are decoded.

    Attributes:
        images: uint8, ``(M, C, H, W)``: the images that could be used, training images first.
        mean: Per-channel mean of the training images in [0, 1].
        std: Per-channel standard deviation of the training images in [0, 1].
        faults: For each row that could not be used, in the order of the files, the reason.
    """

    images: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    faults: dict[int, str]
    largest: int = 0  # value as stored in grayscale images of 16 bits; 0 without such images


def decode_raw(
    train: EncodedSplit,
    test: EncodedSplit | None,
    class_names: Sequence[str],
    artifacts: ArtifactStore,
    config: ImageConfig,
    origin: str,
    notes: Sequence[str] = (),
) -> RawData:
    """Decodes two splits to images of one size and one number of channels.

    Args:
        train: Encoded training images.
        test: Encoded test images; None to split them off the training images, class by class, with a fixed seed.
        class_names: One name per class.
        artifacts: Keeps decoded copies.
        config: Size, mirroring, classes, and what to do with images that cannot be used.
        origin: Where the pixels came from, for tables.
        notes: What the reader has to say about the data.

    Returns:
        uint8 images ``(N, C, H, W)``, views of one tensor, with int64 labels.

    Raises:
        DataError: If images do not decode or have another size than most; lists them.
    """
    if config.classes is not None:
        class_names, chosen = choose_classes(class_names, config.classes)
        train, test = chosen(train), chosen(test) if test else None
    parts = [train, test] if test else [train]
    labels = torch.cat([part.labels for part in parts])
    if test is None:
        train_rows, test_rows = split_off(labels, len(class_names), config.test_fraction)
        notes = [*notes, f"no test split; {len(test_rows)} of {len(labels)} images are split off for testing"]
    else:
        train_rows, test_rows = torch.arange(len(labels)).split([len(train.labels), len(test.labels)])

    def images() -> Iterator[EncodedImage]:
        return chain.from_iterable(part.images() for part in parts)

    order = torch.cat([train_rows, test_rows])
    decoded = decode_images(images, order, len(train_rows), artifacts, config)
    skipped = _locate(images, decoded.faults)
    if skipped:
        notes = [*notes, f"{len(skipped)} of {len(order)} images are left out: {first_of(skipped)}"]
    if 0 < decoded.largest < DARK:
        notes = [
            *notes,
            f"the largest value of the 16-bit images is {decoded.largest} of 65535, so they become dark; if they have "
            f"fewer bits, scale the files to 16",
        ]
    kept = order[[row not in decoded.faults for row in order.tolist()]]
    count = len(train_rows) - sum(row in decoded.faults for row in train_rows.tolist())
    return RawData(
        train_images=decoded.images[:count],
        train_labels=labels[kept[:count]],
        test_images=decoded.images[count:],
        test_labels=labels[kept[count:]],
        class_names=tuple(class_names),
        mean=decoded.mean,
        std=decoded.std,
        mirror=config.mirror,
        origin=origin,
        notes=tuple(notes),
        skipped=tuple(skipped),
    )


def split_off(labels: Tensor, num_classes: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Splits rows into training and test rows, stratified by class and with a fixed seed.

    Args:
        labels: int64, ``(N,)``.
        num_classes: Number of classes.
        fraction: Share of the test rows; every class has at least one.

    Returns:
        The rows of both, each int64 and sorted.
    """
    counts = (torch.bincount(labels, minlength=num_classes).double() * fraction).round().long().clamp(min=1)
    return hold_out(labels, counts, make_generator(seed_for("datasets", "test")))


def choose_classes(
    class_names: Sequence[str], classes: Sequence[int | str]
) -> tuple[list[str], Callable[[EncodedSplit], EncodedSplit]]:
    """Some classes of a data set, before anything is decoded.

    Args:
        class_names: All of them.
        classes: Numbers or names of those that stay, in the order of their new numbers.

    Returns:
        Their names, and a function from a split to what stays of it.

    Raises:
        ConfigError: If there is no class of a number or name, or one occurs twice.
    """
    numbers = [_class_number(class_names, each) for each in classes]
    wrong = [given for given, number in zip(classes, numbers, strict=True) if number < 0 or numbers.count(number) > 1]
    if wrong:
        known = first_of([f"{number} {name}" for number, name in enumerate(class_names)], ", ")
        raise ConfigError(
            f"data.classes = {list(classes)}: expected different classes from 0 to {len(class_names) - 1} or their "
            f"names, but found {quoted(wrong[0])}{suggestion(near(str(wrong[0]), class_names))} (classes: {known})"
        )
    renamed = torch.full((len(class_names),), -1)
    renamed[numbers] = torch.arange(len(numbers))

    def chosen(split: EncodedSplit) -> EncodedSplit:
        labels = renamed[split.labels]
        kept = (labels >= 0).tolist()
        return EncodedSplit(labels[labels >= 0], lambda: compress(split.images(), kept))

    return [class_names[number] for number in numbers], chosen


def _class_number(class_names: Sequence[str], given: int | str) -> int:
    """The number of a class that is given by number or, ignoring case, by name; -1 if there is none."""
    if isinstance(given, int):
        return given if 0 <= given < len(class_names) else -1
    found = matches(given, class_names)
    return list(class_names).index(found[0]) if len(found) == 1 else -1


class DecodedImages(Artifact[Decoded]):
    """Images decoded to one tensor: grayscale if all of them are, else RGB.

    Args:
        images: Starts reading the images.
        order: int64, ``(N,)``: the rows in the order of the result.
        train_count: How many of the result are training images; their statistics are measured.
        config: Size, and what to do with images that cannot be used.
    """

    kind = "decoded"
    title = "decoded images"

    def __init__(self, images: Images, order: Tensor, train_count: int, config: ImageConfig) -> None:
        self.images, self.order, self.train_count, self.config = images, order, train_count, config

    @cached_property
    def key(self) -> str:
        """The hash of contents and settings."""
        return _digest(self.images, self.order, self.train_count, self.config.size)

    def load(self, files: ArtifactFiles) -> Decoded | None:
        """Reads them; None also if they are damaged, or have faults to report: decoding again is always right."""
        name = f"{self.key}.npz"
        return _read_cached(files, name, len(self.order), self.config) if files.exists(name) else None

    def build(self, files: ArtifactFiles, job: StartJob) -> Decoded:
        """Decodes all images, and leaves out or reports those that cannot be used."""
        decoded = _decode_all(self.images, self.order, self.train_count, self.config)
        try:
            files.write(f"{self.key}.npz", partial(_write, decoded))
        except OSError as error:
            raise _cannot_be_kept(files, error) from None
        return decoded


def decode_images(
    images: Images, order: Tensor, train_count: int, artifacts: ArtifactStore, config: ImageConfig
) -> Decoded:
    """Decodes images to one tensor, or reads the result, which is kept since decoding takes long.

    Raises:
        DataError: If images cannot be used and may not be skipped, listing them; if none is left; if the result cannot
            be written.
    """
    artifact = DecodedImages(images, order, train_count, config)
    try:
        return artifacts.get(artifact)
    except OSError as error:
        files, where = artifacts.files(artifact), str(error.filename)
        if not (files.place().startswith(where) or where.startswith(files.place())):
            raise
        raise _cannot_be_kept(files, error) from None  # of the lock


def _cannot_be_kept(files: ArtifactFiles, error: OSError) -> DataError:
    hint = "DD_PLUGINS_CACHE can name another folder"
    return DataError(f"{files.place()}: decoded images cannot be kept there ({error}); {hint}")


def _decode_all(images: Images, order: Tensor, train_count: int, config: ImageConfig) -> Decoded:
    """Decodes all images, and leaves out or reports those that cannot be used."""
    pixels, faults, largest = _decode(images, order, config.size)
    if faults and (config.on_error == "error" or not len(pixels)):
        raise _unusable(_locate(images, faults), len(order))
    usable = train_count - sum(row in faults for row in order[:train_count].tolist())
    return Decoded(pixels, *channel_statistics(pixels[:usable]), faults, largest)


def _unusable(faults: list[str], total: int) -> DataError:
    hints = ["--set data.on_error=skip leaves such images out"]
    if any(map(_is_size, faults)):
        hints.insert(0, "--set data.size=N brings all images to one size")
    if len(faults) == 1:
        return DataError(f"{faults[0]}; {'; '.join(hints)}")
    listed = first_items(sorted(faults, key=_is_size))  # sizes last: one setting mends them all
    return DataError(f"{len(faults)} of {total} images cannot be used ({'; '.join(hints)}):", listed)


def _is_size(fault: str) -> bool:
    return "pixels as most images have" in fault


def _locate(images: Images, faults: dict[int, str]) -> list[str]:
    """The faults with files and rows."""
    if not faults:
        return []
    return [f"{image.where}: {faults[row]}" for row, image in enumerate(images()) if row in faults]


def _digest(images: Images, order: Tensor, train_count: int, size: int | None) -> str:
    # Pillow's version is part of it: another JPEG decoder may give other pixels.
    settings = {"size": size, "pillow": PIL.__version__, "format": FORMAT, "train": train_count}
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(order.numpy().data)
    for image in images():
        try:
            content = image.load()
        except DataError as fault:
            content = f"fault: {fault}".encode()
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


def _write(decoded: Decoded, file: BinaryIO) -> None:
    np.savez(
        file,
        images=decoded.images.numpy(),
        statistics=np.array([decoded.mean, decoded.std]),
        rows=np.array(list(decoded.faults), dtype=np.int64),
        reasons=np.array(list(decoded.faults.values()), dtype=np.str_),
        largest=np.array(decoded.largest),
    )


def _read_cached(files: ArtifactFiles, name: str, total: int, config: ImageConfig) -> Decoded | None:
    """The copy that is kept; None if it is damaged, or has faults to report."""
    try:
        with files.binary(name) as raw, np.load(raw, allow_pickle=False) as file:
            images, statistics, rows, reasons = (file[name] for name in ("images", "statistics", "rows", "reasons"))
            largest = int(file["largest"])
    except Exception as error:  # numpy and zipfile raise anything on a damaged file
        if is_out_of_memory(error):
            raise
        return None
    faults = dict(zip(rows.tolist(), reasons.tolist(), strict=False))
    if not all(0 <= row < total for row in faults):
        return None
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != total - len(faults):
        return None
    if statistics.shape != (2, images.shape[1]) or not np.isfinite(statistics).all():
        return None
    if faults and config.on_error == "error":
        return None
    mean, std = statistics.tolist()
    return Decoded(torch.from_numpy(images), tuple(mean), tuple(std), faults, largest)


def _decode(images: Images, order: Tensor, size: int | None) -> tuple[Tensor, dict[int, str], int]:
    """Decodes row ``order[i]`` to place ``i``; the places of images with faults are closed up.

    Returns:
        The pixels, the faults by row, and the largest value of `Decoded`.
    """
    largest = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        headers, faults = _read_headers(images, size)
        if not headers:
            return torch.empty(0, 1, 1, 1, dtype=torch.uint8), faults, 0
        gray = all(header.gray for header in headers.values())
        width, height = (size, size) if size else next(iter(headers.values()))[1:]
        pixels = _allocated((len(order), 1 if gray else 3, height, width))
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order))
        for place, (row, image) in zip(places.tolist(), enumerate(images()), strict=True):
            if row in faults:
                continue
            try:
                decoded, value = decode_measured(image, gray, size)
                largest = max(largest, value)
                if decoded.shape != pixels.shape[1:]:
                    raise DataError(f"decodes to other {decoded.shape[2]}x{decoded.shape[1]} pixels than announced")
                pixels[place] = decoded
            except DataError as fault:
                faults[row] = str(fault)
    if faults:
        kept = np.delete(np.arange(len(order)), places[list(faults)].numpy())
        for new, old in enumerate(kept.tolist()):
            pixels[new] = pixels[old]
        pixels = pixels[: len(kept)]
    return torch.from_numpy(pixels), dict(sorted(faults.items())), largest


def _allocated(shape: tuple[int, int, int, int]) -> np.ndarray:
    hint = "--set data.size=N makes them smaller, data.classes takes fewer"
    require_memory({f"{shape[0]} images of {shape[3]}x{shape[2]} pixels": prod(shape)}, hint=hint, error=DataError)
    return np.empty(shape, dtype=np.uint8)


def _read_headers(images: Images, size: int | None) -> tuple[dict[int, Header], dict[int, str]]:
    """Headers of the images that can be used, and the faults of the others, by row."""
    headers: dict[int, Header] = {}
    faults: dict[int, str] = {}
    for row, image in enumerate(images()):
        try:
            headers[row] = read_header(image)
        except DataError as fault:
            faults[row] = str(fault)
    if size is None and headers:
        sizes = Counter((header.width, header.height) for header in headers.values())
        ((width, height), most), *_ = sizes.most_common(1)
        if 2 * most < len(headers):
            least, largest = min(sizes, key=prod), max(sizes, key=prod)
            raise DataError(
                f"{len(headers)} images of {len(sizes)} sizes, from {least[0]}x{least[1]} to {largest[0]}x{largest[1]} "
                f"pixels; --set data.size=N resizes the shorter side to N and crops the centre square"
            )
        for row, header in list(headers.items()):
            if header[1:] != (width, height):
                found = f"but found {header.width}x{header.height}"
                faults[row] = f"expected {width}x{height} pixels as most images have, {found}"
                del headers[row]
    return headers, faults
