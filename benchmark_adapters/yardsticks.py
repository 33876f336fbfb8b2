"""Real images that a synthetic set is measured against: a random subset, and the whole training set."""

from __future__ import annotations

import torch

from dd_plugins import registry
from dd_plugins.api import RealData, Split, StorageBudget, StorageLedger, SyntheticSet
from dd_plugins.seeds import make_generator, seed_for

LARGE = 10_000  # training images from which on the whole set is scored on demand only


def random_subset(real: RealData, per_class: int, seed: int, device: torch.device) -> SyntheticSet:
    """Random training images, as many of each class.

    Args:
        real: The data set.
        per_class: How many of each class.
        seed: Which subset.
        device: Where its images go.
    """
    subset = registry.load("parameterization", "pixel")(real.spec, StorageBudget.for_ipc(real.spec, per_class))
    subset.to(device).reset(make_generator(seed_for("random subset", seed)), real)
    return SyntheticSet("random real", real.spec, subset.decode(), subset.labels, subset.storage())


def whole_set(real: RealData, name: str, split: str) -> SyntheticSet:
    """The whole training set; the validation images are part of it unless it is scored on them."""
    joined = (
        real.train
        if split == "validation"
        else Split(
            real.spec,
            real.train.pixels,
            torch.cat([real.train.labels, real.validation.labels]),
            torch.cat([real.train.index, real.validation.index]),
        )
    )
    images = joined.images()
    ledger = StorageLedger.of([("images", images)])
    return SyntheticSet(name, real.spec, images, joined.labels, ledger)
