"""Image files in a folder for each class, with the exact tensors next to them, which 8 bits cannot hold."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmark_adapters.formats.base import checked
from benchmark_adapters.formats.pt import ABOUT, same_spec, test_images, write_about
from benchmark_adapters.image_grids import picture
from dd_plugins.api import RealData, SyntheticFileError, read_tensors, staged, write_tensors
from dd_plugins.api.format import Exported, Format, Imported
from dd_plugins.api.reading import read_json
from dd_plugins.datasets import pixel_values
from dd_plugins.errors import DataError

EXACT, CLASSES = "exact.safetensors", "classes.json"
FORBIDDEN = frozenset('/\\:*?"<>|')  # in names of files, on one system or another
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # on Windows
MAX_BYTES = 200  # of a folder's name; file systems allow 255


class ImageFolders(Format):
    """``train/CLASS/00000.png`` for torchvision's ImageFolder, ``classes.json`` and ``exact.safetensors``.

    Folders have the names of the classes, as far as file systems allow; ``classes.json`` lists them in the order of
    the labels, which need not be that of the alphabet.
    """

    api_version = 2

    holds_pictures = True

    def write(self, exported: Exported, root: Path) -> list[Path]:
        """Writes the folder ``root``."""
        folders = folder_names(exported.class_names)
        classes = [{"name": name, "folder": own} for name, own in zip(exported.class_names, folders, strict=True)]
        with staged(root) as folder:
            for own in folders:
                (folder / "train" / own).mkdir(parents=True)
            for number, (label, image) in enumerate(zip(exported.targets.tolist(), pictures_of(exported), strict=True)):
                image.save(folder / "train" / folders[label] / f"{number:05d}.png")
            (folder / CLASSES).write_text(json.dumps(classes, indent=1) + "\n", encoding="utf-8")
            write_tensors(folder / EXACT, {"images": exported.images, "labels": exported.targets}, {})
            write_about(exported, folder, test_images=test_images(exported))
        return [root / "train", root / CLASSES, root / EXACT, root / ABOUT]

    def read(self, path: Path, real: RealData) -> Imported:
        """Reads the exact tensors of the folder; ``classes.json``, which older exports lack, must agree."""
        same_spec(path, real)
        _check_classes(path / CLASSES, real)
        try:
            held, _ = read_tensors(path / EXACT)
            return checked(held.get("images"), held.get("labels"), real.spec, real.class_names, path / EXACT)
        except SyntheticFileError as error:
            raise DataError(f"{error}; pictures alone are not the set, which has more than 256 levels") from None


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Names of folders for classes: those of the classes if every file system allows them, else similar ones.

    No two are equal, even if case, and composed and decomposed letters, are not distinguished.
    """
    used: set[str] = set()
    found = []
    for name in class_names:
        wanted, number = _safe(name), 1
        own = wanted
        while own.casefold() in used:
            number += 1
            own = f"{wanted} ({number})"
        used.add(own.casefold())
        found.append(own)
    return found


def _safe(name: str) -> str:
    text = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())
    kept = "".join("_" if letter in FORBIDDEN or not letter.isprintable() else letter for letter in text)
    kept = kept.encode()[:MAX_BYTES].decode(errors="ignore").strip().rstrip(".").rstrip()
    hidden = not kept or kept.startswith(".") or kept.partition(".")[0].rstrip().casefold() in RESERVED
    return f"_{kept}" if hidden else kept


def _check_classes(file: Path, real: RealData) -> None:
    """Refuses an order of classes that is not that of the data set, where both have the same names.

    Raises:
        DataError: If it is another, or the file is damaged.
    """
    if not file.exists():
        return
    found = read_json(file, DataError)
    if not isinstance(found, list) or not all(isinstance(entry, dict) and "name" in entry for entry in found):
        raise DataError(f"{file}: damaged: expected a list of classes, each with its name")
    names = [str(entry["name"]) for entry in found]
    if len(names) != real.spec.num_classes:
        raise DataError(f"{file}: {len(names)} classes, but {real.spec.name} has {real.spec.num_classes}")
    if sorted(names) == sorted(real.class_names) and names != list(real.class_names):
        first = next(label for label, name in enumerate(names) if name != real.class_names[label])
        raise DataError(
            f"{file}: the classes stand in another order than those of {real.spec.name}: class {first} is "
            f"{names[first]!r}, not {real.class_names[first]!r}"
        )


def pictures_of(exported: Exported) -> list[Image.Image]:
    """The images as pictures of 8 bits in the colours of the data set, clipped to what can be shown.

    Raises:
        DataError: If the set is whitened and its whitening matrix is not cached.
    """
    return [picture(pixels) for pixels in pixel_values(exported.images.cpu(), exported.data).clamp(0, 1)]
