"""Many encoded images (PNG, JPEG, ...) to one uint8 tensor, with a cache of the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from dd_plugins.api import ConfigError, DataError, Dataset, RawData, SyntheticFileError, read_tensors, write_tensors

GREY_MODES = ("1", "L", "LA")
WIDE_MODES = ("I", "F")  # 16 and 32 bits a pixel, also as "I;16": Pillow would clip them to white


class ImageConfig(Dataset.Config):
    """Settings of every data set of encoded images."""

    size: int | None = Field(
        default=None, ge=1, description="resize the shorter side to this, and crop the centre square"
    )
    mirror: bool = Field(default=True, description="whether an image keeps its label when mirrored left to right")
    classes: tuple[int, ...] | None = Field(
        default=None, min_length=2, description="take these classes alone, numbered anew in this order; None: all"
    )


class EncodedImage(NamedTuple):
    """One image file's content, and where it stands, for messages."""

    where: str
    content: bytes


@dataclass(frozen=True)
class EncodedSplit:
    """The images of one split before decoding, each with its label."""

    images: list[EncodedImage] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def decode_raw(
    train: EncodedSplit, test: EncodedSplit, class_names: Sequence[str], cache: Path, config: ImageConfig, origin: str
) -> RawData:
    """Decodes two splits to images of one size and one number of channels.

    Args:
        train: Encoded training images.
        test: Encoded test images.
        class_names: One name per class.
        cache: Folder for decoded copies.
        config: Size and mirroring.
        origin: Where the pixels came from, for tables.

    Returns:
        uint8 images ``(N, C, H, W)`` with int64 labels; mean and standard deviation are left to be measured.

    Raises:
        DataError: If an image does not decode or has another size than the first; names it.
    """
    if config.classes is not None:
        class_names, chosen = choose_classes(class_names, config.classes)
        train, test = chosen(train), chosen(test)
    images = decode_images([*train.images, *test.images], cache, config.size)
    return RawData(
        train_images=images[: len(train.images)],
        train_labels=torch.tensor(train.labels, dtype=torch.int64),
        test_images=images[len(train.images) :],
        test_labels=torch.tensor(test.labels, dtype=torch.int64),
        class_names=tuple(class_names),
        mirror=config.mirror,
        origin=origin,
    )


def choose_classes(
    class_names: Sequence[str], classes: Sequence[int]
) -> tuple[list[str], Callable[[EncodedSplit], EncodedSplit]]:
    """Some classes of a data set, before anything is decoded.

    Args:
        class_names: All of them.
        classes: Numbers of those that stay, in the order of their new numbers.

    Returns:
        Their names, and a function from a split to what stays of it.

    Raises:
        ConfigError: If a number is none of a class, or there twice.
    """
    wrong = [number for number in classes if not 0 <= number < len(class_names) or classes.count(number) > 1]
    if wrong:
        raise ConfigError(
            f"data.classes = {list(classes)}: expected different classes from 0 to {len(class_names) - 1}, "
            f"but found {wrong[0]}"
        )
    renamed = {old: new for new, old in enumerate(classes)}

    def chosen(split: EncodedSplit) -> EncodedSplit:
        kept = [
            (image, renamed[label]) for image, label in zip(split.images, split.labels, strict=True) if label in renamed
        ]
        return EncodedSplit([image for image, _ in kept], [label for _, label in kept])

    return [class_names[number] for number in classes], chosen


def decode_images(encoded: Sequence[EncodedImage], cache: Path, size: int | None = None) -> Tensor:
    """Decodes images to one tensor: grey if all of them are, else RGB.

    The result is kept as ``cache/decoded/<hash of contents and settings>.safetensors``, since decoding takes long.

    Args:
        encoded: At least one image.
        cache: Folder for decoded copies; a missing or damaged copy is made anew.
        size: If given, the shorter side is resized to it and the centre square is cut out.

    Returns:
        uint8, ``(N, C, H, W)``.

    Raises:
        DataError: If an image does not decode or has another size than the first; names it. Also if the cache
            cannot be written.
    """
    path = cache / "decoded" / f"{_digest(encoded, size)}.safetensors"
    images = _read_cached(path)
    if images is None:
        images = _decode(encoded, size)
        try:
            write_tensors(path, {"images": images}, {})
        except OSError as error:
            hint = "DD_PLUGINS_CACHE can name another folder"
            raise DataError(f"{path}: decoded images cannot be kept there ({error}); {hint}") from None
    return images


def _digest(encoded: Sequence[EncodedImage], size: int | None) -> str:
    # Pillow's version is part of it: another JPEG decoder may give other pixels.
    digest = hashlib.sha256(json.dumps({"size": size, "pillow": PIL.__version__}).encode())
    for image in encoded:
        digest.update(len(image.content).to_bytes(8, "big"))
        digest.update(image.content)
    return digest.hexdigest()


def _read_cached(path: Path) -> Tensor | None:
    try:
        return read_tensors(path)[0].get("images")
    except SyntheticFileError:  # missing or damaged: decoding again is always right
        return None


def _decode(encoded: Sequence[EncodedImage], size: int | None) -> Tensor:
    mode = "L" if all(map(_is_grey, encoded)) else "RGB"  # `all` ends at the first image in colour
    first = _pixels(encoded[0], mode, size)
    images = np.empty((len(encoded), *first.shape), dtype=np.uint8)
    for row, image in enumerate(encoded):
        pixels = _pixels(image, mode, size)
        if pixels.shape != first.shape:
            (height, width), (first_height, first_width) = pixels.shape[1:], first.shape[1:]
            raise DataError(
                f"{image.where}: expected {first_width}x{first_height} pixels as in {encoded[0].where}, "
                f"but found {width}x{height}; --set data.size=N brings all images to one size"
            )
        images[row] = pixels
    return torch.from_numpy(images)


def _is_grey(image: EncodedImage) -> bool:
    with _opened(image) as picture:
        return picture.mode in GREY_MODES


def _pixels(image: EncodedImage, mode: str, size: int | None) -> np.ndarray:
    with _opened(image) as picture:
        if picture.mode.startswith(WIDE_MODES):
            raise DataError(f"{image.where}: expected 8 bits a channel, but found Pillow's mode {picture.mode}")
        converted = picture.convert(mode)
        if size is not None:
            converted = ImageOps.fit(converted, (size, size), Image.Resampling.BILINEAR)
        return np.asarray(converted).reshape(converted.height, converted.width, -1).transpose(2, 0, 1)


@contextmanager
def _opened(image: EncodedImage) -> Iterator[Image.Image]:
    try:
        with Image.open(BytesIO(image.content)) as picture:
            yield picture
    except DataError:
        raise
    except UnidentifiedImageError:  # its message names an object in memory
        raise DataError(f"{image.where}: cannot be decoded (no image format that Pillow knows)") from None
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError
        raise DataError(f"{image.where}: cannot be decoded ({type(error).__name__}: {error})") from error
