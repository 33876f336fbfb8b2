"""Folders of image files, one folder a class."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from dd_plugins.api import DataError, Dataset, RawData
from dd_plugins.datasets.decode import EncodedImage, EncodedSplit, ImageConfig, decode_raw

TEST_NAMES = ("test", "val", "valid", "validation")


class ImageFolder(Dataset):
    """The data set ``folder:PATH``: ``PATH/train/<class>/*`` and ``PATH/test/<class>/*``.

    The second folder may also be called ``val``, ``valid`` or ``validation``; where there are several, the first of
    these names counts. Classes are the folders of ``train`` in alphabetical order. Images become RGB unless all of
    them are grey, and must have one size or be brought to it by the setting ``size``.
    """

    api_version = 1
    takes_argument = True

    class Config(ImageConfig):
        """Size and mirroring."""

    config: Config

    def read(self, root: Path, cache: Path) -> RawData:
        """Reads and decodes all images.

        Args:
            root: Not used; the path is the data set's argument.
            cache: Folder for decoded copies.

        Returns:
            uint8 images ``(N, C, H, W)`` and int64 labels.

        Raises:
            DataError: If a folder is missing or empty, or an image does not decode or has another size; names it.
        """
        folder = Path(self.argument).expanduser()
        tests = [folder / name for name in TEST_NAMES if (folder / name).is_dir()]
        if not tests:
            raise DataError(f"{folder}: expected a folder with train and one of {', '.join(TEST_NAMES)} in it")
        class_names = list_classes(folder / "train")
        train, test = read_classes(folder / "train", class_names), read_classes(tests[0], class_names)
        return decode_raw(train, test, class_names, cache, self.config, "folder")


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
    """Reads the image files under ``folder/<class>``, at any depth and sorted by path.

    Files without the suffix of an image are passed over.

    Args:
        folder: One split.
        class_names: Its classes; the labels are positions in this list.
        others: Whether there may be folders of other classes, which are passed over.

    Returns:
        The encoded images, class by class.

    Raises:
        DataError: If a class is unknown, has no images, or a file cannot be read.
    """
    unknown = [name for name in list_classes(folder) if name not in class_names]
    if unknown and not others:
        raise DataError(f"{folder / unknown[0]}: there is no class of this name in train")
    split = EncodedSplit()
    for label, name in enumerate(class_names):
        paths = sorted(path for path in (folder / name).rglob("*") if is_image(path))
        if not paths:
            raise DataError(f"{folder / name}: expected image files ({' '.join(IMG_EXTENSIONS)}), but found none")
        split.images.extend(map(read_image_file, paths))
        split.labels.extend([label] * len(paths))
    return split


def is_image(path: Path) -> bool:
    """Whether a path looks like an image file: its suffix, and not hidden."""
    return path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".") and path.is_file()


def read_image_file(path: Path) -> EncodedImage:
    """Reads one image file without decoding it.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return EncodedImage(str(path), path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
