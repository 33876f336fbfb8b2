"""Checks of a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dd_plugins.api import Network, RealData
from dd_plugins.api.pruning import Score
from dd_plugins.dynamics import observe_training
from dd_plugins.seeds import make_generator
from dd_plugins.testing.checks import Subject
from dd_plugins.testing.common import (
    check_declares_its_api_version,
    check_documented,
    check_settings_are_described,
    in_colour_and_grey,
)
from dd_plugins.testing.subjects import global_generators_left_alone, small_network
from dd_plugins.training import TrainConfig

EACH, NETWORKS, EPOCHS = 4, 2, 2


@in_colour_and_grey
def check_scores(subject: Subject, real: RealData) -> None:
    """Every image gets one finite score."""
    images, targets = _set(real)
    score = _scored(_made(subject), real, images, targets)
    assert score.shape == targets.shape, (
        f"{subject.name}: expected {tuple(targets.shape)}, but got {tuple(score.shape)}"
    )
    assert score.is_floating_point(), f"{subject.name}: expected floats, but got {score.dtype}"
    assert bool(score.isfinite().all()), f"{subject.name}: NaN or infinite scores"


@in_colour_and_grey
def check_scoring_is_seeded(subject: Subject, real: RealData) -> None:
    """The same seed gives the same scores, also of an instance that is started again; global generators stay."""
    made = _made(subject)
    with global_generators_left_alone(subject.name):
        scores = [_scored(one, real, *_set(real)) for one in (made, made, _made(subject))]
    for other in scores[1:]:
        assert torch.equal(scores[0], other), f"{subject.name}: other scores for the same seed, or after start"


@in_colour_and_grey
def check_scoring_changes_nothing(subject: Subject, real: RealData) -> None:
    """Images, targets and the training of the networks are those without this score."""
    images, targets = _set(real)
    networks, others = ([small_network(real, seed) for seed in range(NETWORKS)] for _ in range(2))
    _scored(_made(subject), real, images, targets, networks)
    expected_images, expected_targets = _set(real)
    assert torch.equal(images, expected_images), f"{subject.name} changes the images"
    assert torch.equal(targets, expected_targets), f"{subject.name} changes the targets"
    _scored(_Nothing(epochs=type(_made(subject)).epochs), real, images, targets, others)
    for one, other in zip(networks, others, strict=True):
        same = all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
        assert same, f"{subject.name} changes the weights of a network"


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_scores,
    check_scoring_is_seeded,
    check_scoring_changes_nothing,
]


class _Nothing(Score):
    """Observes as many epochs as another score."""

    def __init__(self, epochs: int | None) -> None:
        super().__init__()
        self.epochs = epochs  # type: ignore[misc]

    def compute(self) -> Tensor:
        return torch.zeros(len(self.targets))


def _made(subject: Subject) -> Score:
    made: Score = subject.plugin(subject.config)
    return made


def _set(real: RealData) -> tuple[Tensor, Tensor]:
    images = torch.cat([real.train.images(rows[:EACH]) for rows in real.train.class_rows()])
    return images, torch.arange(real.spec.num_classes).repeat_interleave(EACH)


def _scored(
    score: Score, real: RealData, images: Tensor, targets: Tensor, networks: Sequence[Network] | None = None
) -> Tensor:
    generator = make_generator(0)
    if score.epochs == 0:
        score.start((), images, targets, generator)
        return score.compute()
    made = networks or [small_network(real, seed) for seed in range(NETWORKS)]
    config, seeds = TrainConfig(epochs=EPOCHS, batch_size=8, augmentation="none"), range(NETWORKS)
    found = observe_training(
        {"score": score}, made, images, targets, config, real.spec, seeds=seeds, generator=generator
    )
    return found["score"]
