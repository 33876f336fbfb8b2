"""Subsets of ten ImageNet classes, as distillation of larger images uses them, from a local ImageNet folder.

Source: G. Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022 (arXiv 2203.11932),
and "Generalizing Dataset Distillation via Deep Generative Prior", CVPR 2023 (arXiv 2305.01649); class numbers as in
their code.

Deviations:
    - Images are resized and cropped as uint8 before they are normalised, not after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from dd_plugins.api import ArtifactStore, Conventions, DataError, Dataset, RawData, UsageError
from dd_plugins.datasets.decode import ImageConfig, decode_raw
from dd_plugins.datasets.folder import list_classes, read_classes

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CLASSES = 1000
SUBSETS: Mapping[str, tuple[int, ...]] = {  # in the order of labels
    "imagenet-a": (255, 376, 984, 364, 500, 986, 333, 576, 148, 135),
    "imagenet-b": (129, 916, 90, 275, 995, 874, 102, 259, 685, 139),
    "imagenet-c": (565, 94, 554, 535, 92, 392, 291, 136, 324, 11),
    "imagenet-d": (9, 258, 13, 262, 19, 339, 321, 24, 93, 322),
    "imagenet-e": (816, 96, 100, 145, 739, 713, 783, 76, 688, 326),
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagebirds": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagefruits": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imagecats": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
}


class ImageNetSubset(Dataset):
    """The data sets ``imagenet:NAME``: ten classes, ``(3, size, size)``; ImageNet's validation images are the test set.

    Read from ``root/imagenet/train/<wnid>`` and ``root/imagenet/val/<wnid>``, with all 1000 classes' folders in
    ``train``, since a class's number is its place among them. Never downloaded.
    """

    api_version = 2
    takes_argument = True

    class Config(ImageConfig):
        """Size and mirroring."""

        size: int | None = Field(default=128, ge=1, description="the shorter side; the centre square is cut out")

    config: Config

    def conventions(self) -> Conventions | None:
        """ImageNet's statistics, for the classes of the subset and the size that is set."""
        size, classes = self.config.size, self.config.classes or SUBSETS.get(self.argument, ())
        if not classes or size is None:
            return None
        return Conventions(len(classes), (3, size, size), MEAN, STD, self.config.mirror)

    def read(self, root: Path, artifacts: ArtifactStore) -> RawData:
        """Reads and decodes the images of the subset.

        Args:
            root: Folder under which data sets are kept.
            artifacts: Keeps decoded copies.

        Returns:
            uint8 images ``(N, 3, size, size)`` and int64 labels.

        Raises:
            UsageError: If there is no subset of this name.
            DataError: If folders are missing, or an image does not decode; names it.
        """
        if self.argument not in SUBSETS:
            raise UsageError(f"imagenet:{self.argument}: there is no such subset; there are {', '.join(SUBSETS)}")
        folder = root / "imagenet"
        if not (folder / "train").is_dir() or not (folder / "val").is_dir():
            raise DataError(f"imagenet: not found; expected {folder}/train/<wnid> and {folder}/val/<wnid>")
        known = list_classes(folder / "train")
        if len(known) != CLASSES:
            raise DataError(
                f"{folder / 'train'}: expected the folders of all {CLASSES} classes, which give them their numbers, "
                f"but found {len(known)}; a folder of some classes is read as folder:PATH"
            )
        names = [known[number] for number in SUBSETS[self.argument]]
        train, test = (read_classes(folder / part, names, others=True) for part in ("train", "val"))
        return replace(decode_raw(train, test, names, artifacts, self.config, "folder"), mean=MEAN, std=STD)
