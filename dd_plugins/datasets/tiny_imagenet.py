"""Tiny ImageNet: 200 classes of 64x64 images, from parquet files or from the folders of the original archive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dd_plugins.api import ArtifactStore, Conventions, DataError, Dataset, RawData
from dd_plugins.api.messages import first_of
from dd_plugins.datasets.decode import EncodedSplit, ImageConfig, decode_raw
from dd_plugins.datasets.folder import list_classes, read_classes, split_of_files
from dd_plugins.datasets.layout import VALIDATION_AS_TEST, parquet_files
from dd_plugins.datasets.parquet import ParquetConfig, read_parquet

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ANNOTATIONS = Path("val", "val_annotations.txt")


class TinyImageNet(Dataset):
    """The data set ``tiny-imagenet``: ``(3, 64, 64)``; its 10,000 validation images are the test split.

    Read from parquet files in ``root/tiny-imagenet``, else from the original archive unpacked as
    ``root/tiny-imagenet-200`` or ``root/tiny-imagenet``. Never downloaded.
    """

    api_version = 2

    class Config(ImageConfig, ParquetConfig):
        """Size, mirroring and classes."""

    config: Config

    def conventions(self) -> Conventions:
        """ImageNet's statistics, for the size and the classes that are set."""
        size, classes = self.config.size or 64, self.config.classes
        return Conventions(len(classes) if classes else 200, (3, size, size), MEAN, STD, self.config.mirror)

    def read(self, root: Path, artifacts: ArtifactStore) -> RawData:
        """Reads and decodes all images.

        Args:
            root: Folder under which data sets are kept.
            artifacts: Keeps decoded copies.

        Returns:
            uint8 images ``(N, 3, 64, 64)`` and int64 labels.

        Raises:
            DataError: If the files are missing (says what to put where) or damaged (names the file).
        """
        folders = [root / "tiny-imagenet-200", root / "tiny-imagenet"]
        if parquet_files(folders[1]):
            raw = read_parquet(folders[1], artifacts, self.config, self.config)
        elif archives := [folder for folder in folders if (folder / ANNOTATIONS).is_file()]:
            raw = _read_archive(archives[0], artifacts, self.config)
        else:
            raise DataError(
                f"tiny-imagenet: not found; put train*.parquet and valid*.parquet into {folders[1]}, "
                f"or unpack tiny-imagenet-200.zip to {folders[0]} (with train/<wnid>/images and {ANNOTATIONS})"
            )
        notes = tuple(note for note in raw.notes if note != VALIDATION_AS_TEST)  # as everybody tests on it
        return replace(raw, mean=MEAN, std=STD, notes=notes)


def _read_archive(folder: Path, artifacts: ArtifactStore, config: ImageConfig) -> RawData:
    class_names = list_classes(folder / "train")
    train = read_classes(folder / "train", class_names)
    return decode_raw(train, _read_validation(folder, class_names), class_names, artifacts, config, "folder")


def _read_validation(folder: Path, class_names: list[str]) -> EncodedSplit:
    """The validation images are in one folder; a table of file name, class and box gives their labels."""
    table, numbers = folder / ANNOTATIONS, {name: label for label, name in enumerate(class_names)}
    try:
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read as UTF-8 text ({error})") from None
    wrong = [
        f"line {number}: there is no class {row[1]!r} in train" if len(row) > 1 else f"line {number}: no class"
        for number, row in enumerate(rows, start=1)
        if len(row) < 2 or row[1] not in numbers
    ]
    if wrong:
        raise DataError(f"{table}, {first_of(wrong)}")
    if outside := [
        f"line {n}: {row[0]!r} is no name of a file" for n, row in enumerate(rows, 1) if not _is_name(row[0])
    ]:
        raise DataError(f"{table}, {first_of(outside)}")
    paths = [folder / "val" / "images" / row[0] for row in rows]
    return split_of_files(paths, torch.tensor([numbers[row[1]] for row in rows], dtype=torch.int64))


def _is_name(text: str) -> bool:
    return text == Path(text).name and "\0" not in text
