"""Checks of a matching objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dd_plugins.api import IncompatibleError, Match, MatchingObjective, RealData, checked_match
from dd_plugins.seeds import make_generator
from dd_plugins.testing.checks import NotApplicable, Subject
from dd_plugins.testing.common import (
    check_declares_its_api_version,
    check_documented,
    check_settings_are_described,
    in_colour_and_grey,
)
from dd_plugins.testing.subjects import context_for, global_generators_left_alone, in_float64, small_network

EACH = 4  # synthetic images of each class
STEPS = 4
EPSILONS = (1e-6, 1e-7)  # of finite differences: where a ReLU is flipped within one, it seldom is within the other
TOLERANCE = 1e-4  # of the norm of the gradient; those of all built-in objectives are within 1e-6


@in_colour_and_grey
def check_matches_are_well_formed(subject: Subject, real: RealData) -> None:
    """A match is a finite scalar loss, and a finite gradient of the images' shape without a graph."""
    objective, images = _at_work(subject, real)
    for step in range(STEPS):
        index = objective.select(step)
        match = checked_match(objective, images[index], objective.targets[index], step)
        assert bool(match.loss.isfinite()), f"{subject.name}.match: loss {match.loss} at step {step}"
        assert bool(match.image_grad.isfinite().all()), f"{subject.name}.match: NaN or infinite gradient"
        assert not match.image_grad.requires_grad, f"{subject.name}.match: the gradient still has a graph"
        assert not match.loss.requires_grad, f"{subject.name}.match: the loss still has a graph"


@in_colour_and_grey
def check_gradient_is_that_of_the_loss(subject: Subject, real: RealData) -> None:
    """At the first step the gradient is that of finite differences of the loss, unless the objective says otherwise.

    In float64: in float32, differences are noise. At later steps networks may have been trained on the images.
    """
    real = in_float64(real)

    def matched(epsilon: float) -> tuple[Match, Tensor]:
        """The first match of a fresh objective at images that were moved, and the direction in which they were."""
        objective, images = _at_work(subject, real)
        if objective.inexact:
            raise NotApplicable(f"its gradient is not that of its loss, and it says so: {objective.inexact}")
        index = objective.select(0)
        direction = torch.randn(images.shape, generator=make_generator(4), dtype=images.dtype)[index]
        return checked_match(objective, images[index] + epsilon * direction, objective.targets[index], 0), direction

    try:
        match, direction = matched(0.0)
    except RuntimeError as error:  # types that do not go together
        raise NotApplicable(f"it does not work in float64: {' '.join(str(error).split())}") from None
    if match.loss.dtype != torch.float64:
        raise NotApplicable(f"it does not work in float64: its loss is {match.loss.dtype}")
    found = float((match.image_grad.detach() * direction).sum())
    differences = [
        float((matched(epsilon)[0].loss - matched(-epsilon)[0].loss).detach()) / (2 * epsilon) for epsilon in EPSILONS
    ]
    expected = min(differences, key=lambda difference: abs(difference - found))
    assert abs(found - expected) <= TOLERANCE * float(match.image_grad.detach().norm()), (
        f"{subject.name}.match: the loss changes by {expected:.6g} in a direction, but by its gradient {found:.6g}"
    )


@in_colour_and_grey
def check_selection(subject: Subject, real: RealData) -> None:
    """A step selects images that exist, each one once."""
    objective, images = _at_work(subject, real)
    for step in range(STEPS):
        index = objective.select(step)
        assert index.dtype == torch.int64, f"{subject.name}.select: expected int64, but got {index.dtype}"
        assert index.dim() == 1, f"{subject.name}.select: expected one dimension, but got {tuple(index.shape)}"
        assert len(index), f"{subject.name}.select: no image at step {step}"
        assert len(index.unique()) == len(index), f"{subject.name}.select: an image twice at step {step}"
        assert 0 <= int(index.min()) <= int(index.max()) < len(images), f"{subject.name}.select: no such image"
        objective.match(images[index], objective.targets[index], step)


@in_colour_and_grey
def check_every_class_is_matched(subject: Subject, real: RealData) -> None:
    """Within 32 steps images of every class get a gradient."""
    objective, images = _at_work(subject, real)
    touched = torch.zeros(len(images), dtype=torch.bool)
    for step in range(8 * STEPS):
        index = objective.select(step)
        match = checked_match(objective, images[index], objective.targets[index], step)
        touched[index] |= match.image_grad.flatten(1).abs().sum(1) > 0
    reached = objective.targets[touched].unique().tolist()
    everyone = objective.targets.unique().tolist()
    assert reached == everyone, f"{subject.name}: no gradient for classes {sorted({*everyone} - {*reached})}"


@in_colour_and_grey
def check_inputs_are_left_alone(subject: Subject, real: RealData) -> None:
    """Images and targets are as they were behind a match, and nothing has gathered in their grad."""
    objective, images = _at_work(subject, real)
    before, targets = images.clone(), objective.targets.clone()
    for step in range(2):
        index = objective.select(step)
        given = images[index]
        copy = given.clone()
        objective.match(given, objective.targets[index], step)
        assert torch.equal(given, copy), f"{subject.name}.match changes the images that it is given"
        assert given.grad is None, f"{subject.name}.match leaves a gradient at its images"
    assert torch.equal(images, before), f"{subject.name}.match changes the images"
    assert torch.equal(objective.targets, targets), f"{subject.name}.match changes the targets"


@in_colour_and_grey
def check_is_seeded(subject: Subject, real: RealData) -> None:
    """The same seed gives the same matches, and global generators are left alone."""
    gradients = []
    for _ in range(2):
        with global_generators_left_alone(subject.name):
            objective, images = _at_work(subject, real)
            gradients.append(_drive(objective, images, range(STEPS)))
    same = all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert same, f"{subject.name} gives other matches for the same seed; draw from context.generator"


@in_colour_and_grey
def check_resumes_bit_by_bit(subject: Subject, real: RealData) -> None:
    """With the state of another one, which is tensors alone, it goes on as that would have."""
    whole, images = _at_work(subject, real)
    _drive(whole, images, range(2))
    state = whole.state_dict()
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    assert not odd, f"{subject.name}.state_dict holds no tensors under {', '.join(odd)}"
    saved, middle = {name: value.clone() for name, value in state.items()}, images.clone()
    expected = _drive(whole, images, range(2, STEPS))
    second, _ = _at_work(subject, real)
    second.load_state_dict(saved)
    found = _drive(second, middle, range(2, STEPS))
    same = all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert same, f"{subject.name} goes on in another way from its state_dict; everything carried over belongs into it"


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_matches_are_well_formed,
    check_gradient_is_that_of_the_loss,
    check_selection,
    check_every_class_is_matched,
    check_inputs_are_left_alone,
    check_is_seeded,
    check_resumes_bit_by_bit,
]


def _at_work(subject: Subject, real: RealData, seed: int = 0) -> tuple[MatchingObjective, Tensor]:
    """An objective that is prepared, and noisy images; of a container with groups, if it wants one."""
    targets = torch.arange(real.spec.num_classes).repeat_interleave(EACH)
    objective: MatchingObjective = subject.plugin(real.spec, subject.config)
    groups = None
    try:
        objective.check(targets, None, small_network(real, 0))
    except IncompatibleError:
        groups = torch.arange(len(targets)) % 2
        try:
            objective.check(targets, groups, small_network(real, 0))
        except IncompatibleError as error:
            raise NotApplicable(f"it does not work with what the checks have: {error}") from None
    objective.prepare(real, targets, context_for(real, seed, groups))
    images = torch.randn(len(targets), *real.spec.image_shape, generator=make_generator(3))
    return objective, images.to(real.train.images(torch.arange(1)).dtype)


def _drive(objective: MatchingObjective, images: Tensor, steps: range) -> list[Tensor]:
    """What a runner does, with pixels and plain SGD: changes ``images`` and returns every gradient."""
    gradients = []
    for step in steps:
        index = objective.select(step)
        match = checked_match(objective, images[index], objective.targets[index], step)
        images[index] -= 0.1 * match.image_grad / match.image_grad.abs().max().clamp(min=1e-12)
        gradients.append(match.image_grad)
    return gradients
