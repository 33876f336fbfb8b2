"""Tiny ImageNet: 200 classes of 64x64 images, from parquet files or from the folders of the original archive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dd_plugins.api import DataError, Dataset, RawData
from dd_plugins.datasets.decode import EncodedSplit, ImageConfig, decode_raw
from dd_plugins.datasets.folder import list_classes, read_classes, read_image_file
from dd_plugins.datasets.parquet import read_parquet

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ANNOTATIONS = Path("val", "val_annotations.txt")


class TinyImageNet(Dataset):
    """The data set ``tiny-imagenet``: ``(3, 64, 64)``; its 10,000 validation images are the test split.

    Read from parquet files in ``root/tiny-imagenet``, else from the original archive unpacked as
    ``root/tiny-imagenet-200`` or ``root/tiny-imagenet``. Never downloaded.
    """

    api_version = 1

    class Config(ImageConfig):
        """Size, mirroring and classes."""

    config: Config

    def read(self, root: Path, cache: Path) -> RawData:
        """Reads and decodes all images.

        Args:
            root: Folder under which data sets are kept.
            cache: Folder for decoded copies.

        Returns:
            uint8 images ``(N, 3, 64, 64)`` and int64 labels.

        Raises:
            DataError: If the files are missing (says what to put where) or damaged (names the file).
        """
        folders = [root / "tiny-imagenet-200", root / "tiny-imagenet"]
        if any(folders[1].glob("*.parquet")):
            raw = read_parquet(folders[1], cache, self.config)
        elif archives := [folder for folder in folders if (folder / ANNOTATIONS).is_file()]:
            raw = _read_archive(archives[0], cache, self.config)
        else:
            raise DataError(
                f"tiny-imagenet: not found; put train*.parquet and valid*.parquet into {folders[1]}, "
                f"or unpack tiny-imagenet-200.zip to {folders[0]} (with train/<wnid>/images and {ANNOTATIONS})"
            )
        return replace(raw, mean=MEAN, std=STD)


def _read_archive(folder: Path, cache: Path, config: ImageConfig) -> RawData:
    class_names = list_classes(folder / "train")
    train = read_classes(folder / "train", class_names)
    return decode_raw(train, _read_validation(folder, class_names), class_names, cache, config, "folder")


def _read_validation(folder: Path, class_names: list[str]) -> EncodedSplit:
    """The validation images stand in one folder; a table of file name, class and box gives their labels."""
    split, labels = EncodedSplit(), {name: label for label, name in enumerate(class_names)}
    for number, line in enumerate((folder / ANNOTATIONS).read_text().splitlines(), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in labels:
            raise DataError(f"{folder / ANNOTATIONS}, line {number}: there is no class {wnid!r} in train")
        split.images.append(read_image_file(folder / "val" / "images" / name))
        split.labels.append(labels[wnid])
    return split
