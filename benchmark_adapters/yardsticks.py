"""Real images that a synthetic set is measured against: a random subset, and the whole training set."""

from __future__ import annotations

import torch

from dd_plugins import registry
from dd_plugins.api import RealData, Split, StorageBudget, StorageLedger, SyntheticSet
from dd_plugins.seeds import make_generator, seed_for

RANDOM = "random real"
LARGE = 10_000  # training images from which on the whole set is scored on demand only


def random_subset(real: RealData, per_class: int, seed: int, device: torch.device) -> SyntheticSet:
    """Random training images, as many of each class, each at most once.

    Args:
        real: The data set.
        per_class: How many of each class; a class with fewer gives all of them.
        seed: Which subset.
        device: Where its images go.
    """
    counts = [min(per_class, size) for size in real.train.class_sizes()]
    budget = StorageBudget.ipc(real.spec, per_class)
    subset = registry.load("parameterization", "pixel")(real.spec, budget, counts=counts)
    subset.to(device).reset(make_generator(seed_for("random subset", seed)), real)
    return SyntheticSet(RANDOM, real.spec, subset.decode(), subset.labels, subset.storage())


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
