"""Pictures in a folder for each class, with the exact tensors beside them: pictures have 256 levels, sets have more."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmark_adapters.formats.base import Exported, Format, Imported, checked
from benchmark_adapters.formats.pt import ABOUT, same_spec, write_about
from dd_plugins.api import RealData, SyntheticFileError, read_tensors, staged, write_tensors
from dd_plugins.errors import DataError

EXACT = "exact.safetensors"


class ImageFolders(Format):
    """``train/CLASS/0000.png`` for torchvision's ImageFolder, and ``exact.safetensors``."""

    def write(self, exported: Exported, root: Path) -> list[Path]:
        """Writes the folder ``root``."""
        with staged(root) as folder:
            pictures = pictures_of(exported)
            for number, (label, picture) in enumerate(zip(exported.targets.tolist(), pictures, strict=True)):
                own = folder / "train" / f"{label:04d} {_safe(exported.class_names[label])}"
                own.mkdir(parents=True, exist_ok=True)
                picture.save(own / f"{number:05d}.png")
            held = {"images": exported.images, "labels": exported.targets}
            write_tensors(folder / EXACT, held, {})
            write_about(exported, folder)
        return [root / "train", root / EXACT, root / ABOUT]

    def read(self, path: Path, real: RealData) -> Imported:
        """Reads the exact tensors of the folder."""
        same_spec(path, real)
        try:
            held, _ = read_tensors(path / EXACT)
            return checked(held.get("images"), held.get("labels"), real.spec, real.class_names, path / EXACT)
        except SyntheticFileError as error:
            raise DataError(f"{error}; pictures alone are not the set, which has more than 256 levels") from None


def pictures_of(exported: Exported) -> list[Image.Image]:
    """The images as pictures of 8 bits, clipped to what can be shown; whitened ones are shown as they are stored."""
    pixels = exported.data.denormalize(exported.images.cpu()).clamp(0, 1)
    return [_picture(image) for image in (pixels * 255).round().to(torch.uint8)]


def _picture(image: Tensor) -> Image.Image:
    channels = image.shape[0]
    return Image.fromarray((image[0] if channels != 3 else image.permute(1, 2, 0)).numpy())


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in name)
