"""Folders of image files, one folder per class."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from dd_plugins.api import ArtifactStore, DataError, Dataset, RawData
from dd_plugins.api.messages import first_of, shown
from dd_plugins.datasets.decode import EncodedSplit, ImageConfig, decode_raw
from dd_plugins.datasets.images import EncodedImage, read_file
from dd_plugins.datasets.layout import VALIDATION_AS_TEST, local_path, split_folders, split_of

# Those of torchvision's ImageFolder, whose import takes a second.
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolder(Dataset):
    """The data set ``folder:PATH``: ``PATH/train/<class>/*`` and ``PATH/test/<class>/*``, or ``PATH/<class>/*``.

    The second folder may also be called ``val``, ``valid`` or ``validation``; where there are several, the first of
    these names counts. Without a test split, a stratified fifth of the images is split off. Classes are the folders
    in alphabetical order. Images become RGB unless all of them are grayscale, and must have one size or be brought to
    it by the setting ``size``. As in torchvision's ``ImageFolder``, the EXIF orientation is not applied.
    """

    api_version = 2
    takes_argument = True

    class Config(ImageConfig):
        """Size, mirroring, classes, and what to do without a test split or with damaged images."""

    config: Config

    def read(self, root: Path, artifacts: ArtifactStore) -> RawData:
        """Reads and decodes all images.

        Args:
            root: Not used; the path is the data set's argument.
            artifacts: Keeps decoded copies.

        Returns:
            uint8 images ``(N, C, H, W)`` and int64 labels.

        Raises:
            DataError: If a folder is missing or empty, or images do not decode or have other sizes; lists them.
        """
        folder = local_path(self.argument)
        if not folder.is_dir():
            found = "expected a folder with train/<class> or <class> in it, but found a file"
            raise DataError(f"{folder}: {found if folder.exists() else 'no such folder'}")
        splits = split_folders(folder)
        if splits and "train" not in splits:
            raise DataError(f"{folder}: expected a folder train next to {', '.join(p.name for p in splits.values())}")
        source = splits.get("train", folder)
        class_names = list_classes(source)
        if not splits:
            _check_flat(folder, class_names)
        train = read_classes(source, class_names)
        tests = splits.get("test") or splits.get("validation")
        test = read_classes(tests, class_names) if tests else None
        names = [shown(Path(name)) for name in class_names]
        notes = [VALIDATION_AS_TEST] if tests and "test" not in splits else []
        return decode_raw(train, test, names, artifacts, self.config, "folder", notes)


def _check_flat(folder: Path, names: list[str]) -> None:
    """Refuses what only looks like a folder of classes: splits without classes, or a data set one folder deeper."""
    if all(split_of(name) for name in names):
        raise DataError(
            f"{folder}: expected folders of classes in {', '.join(map(repr, names))}, such as {names[0]}/<class>, "
            f"but found none"
        )
    inner = folder / names[0]
    if len(names) == 1 and any(path.is_dir() for path in inner.iterdir()):
        raise DataError(f"{folder}: expected folders of classes, but found one folder; did you mean folder:{inner}?")


def list_classes(folder: Path) -> list[str]:
    """The names of the folders in ``folder``, sorted; hidden ones do not count.

    Raises:
        DataError: If there are none.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    names = sorted(path.name for path in found if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: expected a folder with one folder per class in it")
    return names


def read_classes(folder: Path, class_names: list[str], others: bool = False) -> EncodedSplit:
    """Finds the image files under ``folder/<class>``, at any depth and sorted by path.

    Files without the suffix of an image are ignored.

    Args:
        folder: One split.
        class_names: Its classes; the labels are positions in this list.
        others: Whether there may be folders of other classes, which are ignored.

    Returns:
        The encoded images, class by class.

    Raises:
        DataError: If classes are unknown or have no images.
    """
    unknown = [shown(folder / name) for name in list_classes(folder) if name not in class_names]
    if unknown and not others:
        raise DataError(f"{first_of(unknown, ', ')}: there is no class of this name in train")
    paths = [sorted(path for path in (folder / name).rglob("*") if is_image(path)) for name in class_names]
    empty = [shown(folder / name) for name, found in zip(class_names, paths, strict=True) if not found]
    if empty:
        raise DataError(f"{first_of(empty, ', ')}: expected image files ({' '.join(IMG_EXTENSIONS)}), but found none")
    sizes = torch.tensor([len(found) for found in paths])
    labels = torch.arange(len(paths)).repeat_interleave(sizes)
    return split_of_files([path for found in paths for path in found], labels)


def split_of_files(paths: list[Path], labels: torch.Tensor) -> EncodedSplit:
    """Image files, one after the other, with their labels (int64, ``(N,)``)."""

    def images() -> Iterator[EncodedImage]:
        return (EncodedImage(shown(path), partial(read_file, path)) for path in paths)

    return EncodedSplit(labels, images)


def is_image(path: Path) -> bool:
    """Whether a path looks like an image file: its suffix, and not hidden."""
    return path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".") and path.is_file()
