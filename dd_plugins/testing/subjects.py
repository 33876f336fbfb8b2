"""What checks work on: tiny made-up data, budgets and networks; and a guard of the global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dd_plugins.api import ArtifactStore, Context, MemoryArtifacts, Network, RawData, RealData
from dd_plugins.datasets import build_real_data
from dd_plugins.networks import build_network
from dd_plugins.seeds import make_generator

CLASSES, SHAPE, EACH = 4, (3, 16, 16), 12
IPCS = (1, 2, 5, 10)
COLOUR, GREY = (4, (3, 8, 8)), (3, (1, 12, 10))  # classes and shape: two that have nothing in common
STEPS = 10


def made_up_data(classes: int = CLASSES, shape: tuple[int, int, int] = SHAPE, each: int = EACH) -> RealData:
    """Noise around a mean of each class's own: uint8 images, ``each`` of every class."""
    labels = torch.arange(classes).repeat(each)
    noise = torch.randint(0, 100, (len(labels), *shape), generator=make_generator(0))
    images = (noise + (140 // classes) * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    names = tuple(f"class {label}" for label in range(classes))
    return build_real_data("made-up", RawData(images, labels, images[: 2 * classes], labels[: 2 * classes], names))


def in_float64(real: RealData) -> RealData:
    """The same data in float64, with a fingerprint of its own: nothing cached for one is used for the other."""
    spec = replace(real.spec, fingerprint=f"{real.spec.fingerprint}-float64")
    pixels = real.train.pixels.double() / 255
    train, validation, test = (
        replace(split, spec=spec, pixels=pixels) for split in (real.train, real.validation, real.test)
    )
    return replace(real, spec=spec, train=train, validation=validation, test=test)


def small_network(real: RealData, seed: int) -> Network:
    """A ConvNet of 4 channels."""
    spec = real.spec
    return build_network("convnet", spec.image_shape, spec.num_classes, {"width": 4, "depth": 2}, seed=seed)


def context_for(real: RealData, seed: int = 0, groups: Tensor | None = None) -> Context:
    """What a plugin is given to work with; its artifacts are shared by the checks of a process."""
    dtype = real.train.images(torch.arange(1)).dtype
    return Context(
        lambda seed: small_network(real, seed).to(dtype),
        make_generator(seed),
        STEPS,
        torch.device("cpu"),
        artifacts=_artifacts(),
        groups=groups,
        network={"name": "convnet", "width": 4, "depth": 2},
    )


@cache
def _artifacts() -> ArtifactStore:
    return MemoryArtifacts()


@contextmanager
def global_generators_left_alone(who: str) -> Iterator[None]:
    """Asserts that the global generators of torch, numpy and Python are not used within it."""
    before = _states()
    yield
    for name, one, other in zip(("torch", "numpy", "Python"), before, _states(), strict=True):
        assert one == other, (
            f"{who} draws from {name}'s global generator; randomness comes from the generator that reset is given"
        )


def _states() -> tuple[object, ...]:
    of_numpy = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().numpy().tobytes(), (of_numpy["key"].tobytes(), of_numpy["pos"]), random.getstate()
