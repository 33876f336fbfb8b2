"""One encoded image (PNG, JPEG, ...) to uint8 pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dd_plugins.api import DataError
from dd_plugins.errors import is_out_of_memory

GRAY_MODES = ("1", "L", "LA")
SCALED_FORMATS = ("PNG", "PPM")  # Pillow's mode "I" holds 16 bits for these, and 32 bits for others
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class EncodedImage:
    """One image file: where it is, for messages, and how its content is read.

    Attributes:
        where: File and row.
        load: Returns the content of the image file; raises `DataError` with the reason alone if it cannot be read.
    """

    where: str
    load: Callable[[], bytes]


class Header(NamedTuple):
    """What is known about an image before it is decoded."""

    gray: bool
    width: int
    height: int


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: With the reason alone, if the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None


def read_header(image: EncodedImage) -> Header:
    """Reads mode and size of an image without decoding it.

    Raises:
        DataError: With the reason alone, if the content is not an image or its kind of pixels is not supported.
    """
    with _opened(image.load()) as picture:
        if picture.mode == "F" or (picture.mode == "I" and picture.format not in SCALED_FORMATS):
            raise DataError("has 32 bits per channel, whose range is not known; convert it to 8 or 16 bits")
        return Header(picture.mode in GRAY_MODES or _is_wide(picture), picture.width, picture.height)


def decode(image: EncodedImage, gray: bool, size: int | None = None) -> np.ndarray:
    """The pixels that `decode_measured` gives."""
    return decode_measured(image, gray, size)[0]


def decode_measured(image: EncodedImage, gray: bool, size: int | None = None) -> tuple[np.ndarray, int]:
    """Decodes one image.

    Transparent images are composited on white. Grayscale images of 16 bits are scaled to 8 bits (divided by 257 and
    rounded). The EXIF orientation is not applied, as in torchvision's ``ImageFolder``.

    Args:
        image: The image.
        gray: Whether to return one channel; otherwise three (RGB).
        size: If given, the shorter side is resized to it and the center square is cropped.

    Returns:
        uint8, ``(C, H, W)``; and the largest value of a grayscale image of 16 bits as stored, 0 for all others.

    Raises:
        DataError: With the reason alone, if the image does not decode.
    """
    with _opened(image.load()) as picture:
        mode = "L" if gray else "RGB"
        largest = int(np.asarray(picture).max()) if _is_wide(picture) else 0
        converted = _opaque(_eight_bits(picture) if _is_wide(picture) else picture).convert(mode)
        if size is not None:
            converted = ImageOps.fit(converted, (size, size), Image.Resampling.BILINEAR)
        return np.asarray(converted).reshape(converted.height, converted.width, -1).transpose(2, 0, 1), largest


def _is_wide(picture: Image.Image) -> bool:
    return picture.mode.startswith("I")  # "I;16" and its byte orders; "I" of other formats is refused by its header


def _eight_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    background = Image.new("RGBA", picture.size, "white")
    background.alpha_composite(picture.convert("RGBA"))
    return background


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(BytesIO(content)) as picture:
            yield picture
    except DataError:
        raise
    except UnidentifiedImageError:  # its message names an object in memory
        if content.startswith(LFS_POINTER):
            raise DataError("is a Git LFS pointer, not the image; run `git lfs pull`") from None
        raise DataError("cannot be decoded (not an image format that Pillow knows)") from None
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise DataError(f"cannot be decoded ({type(error).__name__}: {reason})") from error
