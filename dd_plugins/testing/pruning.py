"""Checks of a pruning strategy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dd_plugins.api import PruningStrategy, RealData, StorageLedger, SyntheticSet
from dd_plugins.testing.checks import Subject
from dd_plugins.testing.common import (
    check_declares_its_api_version,
    check_documented,
    check_settings_are_described,
    in_colour_and_grey,
)
from dd_plugins.testing.subjects import context_for, global_generators_left_alone

EACH = 6


@in_colour_and_grey
def check_scores(subject: Subject, real: RealData) -> None:
    """Every image gets one finite score."""
    score = _scored(subject, real, _set(real))
    assert score.shape == (real.spec.num_classes * EACH,), (
        f"{subject.name}.score: expected one number an image, got {score.shape}"
    )
    assert score.is_floating_point(), f"{subject.name}.score: expected floats, but got {score.dtype}"
    assert bool(score.isfinite().all()), f"{subject.name}.score: NaN or infinite"


@in_colour_and_grey
def check_scoring_is_seeded(subject: Subject, real: RealData) -> None:
    """The same seed gives the same scores, and global generators are left alone."""
    with global_generators_left_alone(f"{subject.name}.score"):
        one, other = (_scored(subject, real, _set(real)) for _ in range(2))
    assert torch.equal(one, other), f"{subject.name}.score differs for the same seed; draw from context.generator"


@in_colour_and_grey
def check_scoring_changes_nothing(subject: Subject, real: RealData) -> None:
    """The images that are scored are as they were."""
    images = _set(real)
    before = images.images.clone()
    _scored(subject, real, images)
    assert torch.equal(images.images, before), f"{subject.name}.score changes the images"


@in_colour_and_grey
def check_selection(subject: Subject, real: RealData) -> None:
    """As many images as required are selected, sorted, each once, and a share of every class."""
    strategy, targets, classes = _strategy(subject), _targets(real), real.spec.num_classes
    distinct = torch.linspace(0, 1, len(targets)).flip(0).double()
    for candidate in strategy.candidates():
        for num_keep in (len(targets), len(targets) - classes, 2 * classes + 1):
            index = candidate.select(distinct, targets, num_keep)
            what = f"{subject.name}.select of {num_keep}"
            assert index.dtype == torch.int64, f"{what}: expected int64, but got {index.dtype}"
            assert len(index) == num_keep, f"{what}: selects {len(index)}"
            assert bool((index.diff() > 0).all()), f"{what}: not sorted, or an image twice"
            assert 0 <= int(index[0]) <= int(index[-1]) < len(targets), f"{what}: no such image"
            left = torch.bincount(targets[index], minlength=classes)
            assert int(left.min()) > 0, f"{what}: no image of class {int(left.argmin())} is left"


@in_colour_and_grey
def check_equal_scores(subject: Subject, real: RealData) -> None:
    """If all images have the same score, it still selects as many as required, always the same."""
    strategy, targets, num_keep = _strategy(subject), _targets(real), 2 * real.spec.num_classes
    equal = torch.zeros(len(targets), dtype=torch.float64)
    one, other = (strategy.select(equal, targets, num_keep) for _ in range(2))
    assert len(one) == num_keep, f"{subject.name}.select: {len(one)} of equal scores, not {num_keep}"
    assert torch.equal(one, other), f"{subject.name}.select: other images of equal scores the second time"


def check_candidates(subject: Subject) -> None:
    """There is a candidate at least, and all are strategies."""
    found = list(_strategy(subject).candidates())
    assert found, f"{subject.name}.candidates: none"
    assert all(isinstance(one, PruningStrategy) for one in found), f"{subject.name}.candidates: not all are strategies"


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_scores,
    check_scoring_is_seeded,
    check_scoring_changes_nothing,
    check_selection,
    check_equal_scores,
    check_candidates,
]


def _strategy(subject: Subject) -> PruningStrategy:
    made: PruningStrategy = subject.plugin(subject.config)
    return made


def _targets(real: RealData) -> Tensor:
    return torch.arange(real.spec.num_classes).repeat_interleave(EACH)


def _set(real: RealData) -> SyntheticSet:
    images = torch.cat([real.train.images(rows[:EACH]) for rows in real.train.class_rows()])
    return SyntheticSet("made-up", real.spec, images, _targets(real), StorageLedger.of([("images", images)]))


def _scored(subject: Subject, real: RealData, images: SyntheticSet) -> Tensor:
    score: Tensor = _strategy(subject).score(images, context_for(real))
    return score
