"""Scikit-learn's embedded digits: 1797 grey images of 8x8 pixels, on every machine and without a download."""

from __future__ import annotations

from pathlib import Path

import torch

from dd_plugins.api import ArtifactStore, Conventions, Dataset, RawData
from dd_plugins.api.real_data import hold_out
from dd_plugins.seeds import make_generator, seed_for

LEVELS = 16  # its pixels run from 0 to 16
TEST_SHARE = 5  # it comes without a split: one image in five is for testing


class Digits(Dataset):
    """The data set ``digits``: 10 classes, ``(1, 8, 8)``, with a fixed test split of a fifth of every class."""

    api_version = 2

    def conventions(self) -> Conventions:
        """Mean and standard deviation are measured, and digits are not mirrored."""
        return Conventions(10, (1, 8, 8), mirror=False)

    def read(self, root: Path, artifacts: ArtifactStore) -> RawData:
        """Reads the images out of scikit-learn; ``root`` and ``artifacts`` are not used.

        Args:
            root: Not used.
            artifacts: Not used.

        Returns:
            uint8 images ``(N, 1, 8, 8)``, the 17 grey levels spread over 0 to 255, and int64 labels.
        """
        from sklearn.datasets import load_digits  # a second of import time that only this data set pays

        data = load_digits()
        images = torch.from_numpy(data.images * (255 / LEVELS)).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(data.target).long()
        counts = torch.bincount(labels) // TEST_SHARE
        train, test = hold_out(labels, counts, make_generator(seed_for("datasets", "digits", "test")))
        return RawData(
            train_images=images[train],
            train_labels=labels[train],
            test_images=images[test],
            test_labels=labels[test],
            class_names=tuple(str(name) for name in data.target_names),
            mirror=False,
            origin="scikit-learn",
        )
