"""Checks of a pruning strategy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dd_plugins.api import PruningStrategy, StorageLedger, SyntheticSet
from dd_plugins.testing.checks import Subject
from dd_plugins.testing.common import check_documented, check_settings_are_described
from dd_plugins.testing.subjects import CLASSES, context_for, global_generators_left_alone, made_up_data

EACH = 6


def check_scores(subject: Subject) -> None:
    """Every image gets one finite score."""
    score = _scored(subject)
    assert score.shape == (CLASSES * EACH,), f"{subject.name}.score: expected one number an image, got {score.shape}"
    assert score.is_floating_point(), f"{subject.name}.score: expected floats, but got {score.dtype}"
    assert bool(score.isfinite().all()), f"{subject.name}.score: NaN or infinite"


def check_scoring_is_seeded(subject: Subject) -> None:
    """The same seed gives the same scores, and global generators are left alone."""
    with global_generators_left_alone(f"{subject.name}.score"):
        one, other = _scored(subject), _scored(subject)
    assert torch.equal(one, other), f"{subject.name}.score differs for the same seed; draw from context.generator"


def check_scoring_changes_nothing(subject: Subject) -> None:
    """The images that are scored are as they were."""
    images = _set()
    before = images.images.clone()
    _scored(subject, images)
    assert torch.equal(images.images, before), f"{subject.name}.score changes the images"


def check_selection(subject: Subject) -> None:
    """As many images as asked for are selected, sorted, each once, and a share of every class."""
    strategy, targets = _strategy(subject), _targets()
    distinct = torch.linspace(0, 1, len(targets)).flip(0).double()
    for candidate in strategy.candidates():
        for num_keep in (len(targets), len(targets) - CLASSES, 2 * CLASSES + 1):
            index = candidate.select(distinct, targets, num_keep)
            told = f"{subject.name}.select of {num_keep}"
            assert index.dtype == torch.int64, f"{told}: expected int64, but got {index.dtype}"
            assert len(index) == num_keep, f"{told}: selects {len(index)}"
            assert bool((index.diff() > 0).all()), f"{told}: not sorted, or an image twice"
            assert 0 <= int(index[0]) <= int(index[-1]) < len(targets), f"{told}: no such image"
            left = torch.bincount(targets[index], minlength=CLASSES)
            assert int(left.min()) > 0, f"{told}: no image of class {int(left.argmin())} is left"


def check_equal_scores(subject: Subject) -> None:
    """Where all images have the same score, it still selects as many as asked for, always the same."""
    strategy, targets = _strategy(subject), _targets()
    equal = torch.zeros(len(targets), dtype=torch.float64)
    one, other = (strategy.select(equal, targets, 2 * CLASSES) for _ in range(2))
    assert len(one) == 2 * CLASSES, f"{subject.name}.select: {len(one)} of equal scores, not {2 * CLASSES}"
    assert torch.equal(one, other), f"{subject.name}.select: other images of equal scores the second time"


def check_candidates(subject: Subject) -> None:
    """There is a candidate at least, and all are strategies."""
    found = list(_strategy(subject).candidates())
    assert found, f"{subject.name}.candidates: none"
    assert all(isinstance(one, PruningStrategy) for one in found), f"{subject.name}.candidates: not all are strategies"


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
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


def _targets() -> Tensor:
    return torch.arange(CLASSES).repeat_interleave(EACH)


def _set() -> SyntheticSet:
    real = made_up_data(each=EACH + 2)
    images = torch.cat([real.train.images(rows[:EACH]) for rows in real.train.class_rows()])
    return SyntheticSet("made-up", real.spec, images, _targets(), StorageLedger.of([("images", images)]))


def _scored(subject: Subject, images: SyntheticSet | None = None) -> Tensor:
    score: Tensor = _strategy(subject).score(images or _set(), context_for(made_up_data()))
    return score
