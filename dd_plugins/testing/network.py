"""Checks of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dd_plugins.api import IncompatibleError, Network
from dd_plugins.seeds import make_generator, seeded_layers
from dd_plugins.testing.checks import NotApplicable, Subject
from dd_plugins.testing.common import check_declares_its_api_version, check_documented, check_settings_are_described
from dd_plugins.testing.subjects import global_generators_left_alone

SHAPES = ((3, 32, 32), (1, 28, 28), (1, 8, 8))
CLASSES = 7
STEPS = (1e-6, 1e-8)  # of finite differences; with many ReLUs the larger one may step over a kink


def check_logits(subject: Subject) -> None:
    """Images of colour and grey, of several sizes, get finite logits for every class, and not all the same."""
    for shape in SHAPES:
        network, images = _made(subject, shape), _images(shape)
        with torch.no_grad():
            logits = network(images)
        assert logits.shape == (len(images), CLASSES), (
            f"{subject.name}: expected logits {(len(images), CLASSES)} of images {shape}, but got {tuple(logits.shape)}"
        )
        assert bool(logits.isfinite().all()), f"{subject.name}: NaN or infinite logits of images {shape}"
        apart = float((logits[0] - logits[1]).abs().max())
        assert apart > 1e-6, f"{subject.name}: all images {shape} get the same logits"


def check_every_parameter_gets_a_gradient(subject: Subject) -> None:
    """The loss depends on every parameter, and on the images."""
    network, images = _made(subject), _images().requires_grad_()
    functional.cross_entropy(network(images), torch.arange(len(images)) % CLASSES).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert not missing, f"{subject.name}: no gradient, or NaN, of {', '.join(missing)}"
    assert images.grad is not None and bool((images.grad.flatten(1) != 0).any(1).all()), (  # noqa: PT018
        f"{subject.name}: no gradient reaches the images"
    )


def check_can_be_differentiated_twice(subject: Subject) -> None:
    """Gradient matching goes through the gradients of the parameters: its gradient is that of finite differences."""
    network, images = _made(subject).double(), _images().double()
    for module in network.modules():  # masks of dropout differ from call to call
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    direction = torch.randn(images.shape, generator=make_generator(6), dtype=images.dtype)

    def matched(images: Tensor) -> Tensor:
        loss = functional.cross_entropy(network(images), torch.arange(len(images)) % CLASSES)
        found = torch.autograd.grad(loss, list(network.parameters()), create_graph=True, allow_unused=True)
        return torch.stack([g.square().sum() for g in found if g is not None]).sum()

    leaf = images.clone().requires_grad_()
    (second,) = torch.autograd.grad(matched(leaf), leaf)
    assert bool(second.isfinite().all()), f"{subject.name}: NaN or infinite second derivatives"
    found, tried = float((second * direction).sum()), []
    for step in STEPS:
        above, below = (float(matched(images + move * direction).detach()) for move in (step, -step))
        tried.append((above - below) / (2 * step))
        if abs(found - tried[-1]) < 1e-2 * max(abs(tried[-1]), 1e-12):
            return
    expected = " or ".join(f"{value:.6g}" for value in tried)
    raise AssertionError(f"{subject.name}: second derivative {found:.6g}, but by finite differences {expected}")


def check_weights_follow_the_seed(subject: Subject) -> None:
    """The same seed around the constructor gives the same weights, another seed others."""
    one, again, other = (_made(subject, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one), f"{subject.name}: other weights for the same seed"
    assert any(not torch.equal(one[name], other[name]) for name in one), (
        f"{subject.name}: the same weights for different seeds"
    )


def check_evaluation_is_deterministic(subject: Subject) -> None:
    """In evaluation mode the same image gets the same logits, beside whatever others, and nothing is drawn."""
    network, images = _made(subject).eval(), _images()
    with torch.no_grad(), global_generators_left_alone(f"{subject.name} in evaluation mode"):
        whole, again = network(images), network(images)
        alone = torch.cat([network(image[None]) for image in images])
    assert torch.equal(whole, again), f"{subject.name}: other logits the second time"
    apart = float((alone - whole).abs().max())
    assert apart <= 1e-4 * max(1.0, float(whole.abs().max())), f"{subject.name}: an image's logits depend on the others"


def check_features(subject: Subject) -> None:
    """Features are finite vectors, one an image; a network without any says so."""
    network, images = _made(subject), _images()
    try:
        features = network.embed(images)
    except IncompatibleError:
        raise NotApplicable("it has no features, and says so") from None
    assert features.dim() == 2, f"{subject.name}.embed: expected (N, D), but got {tuple(features.shape)}"
    assert len(features) == len(images), f"{subject.name}.embed: {len(features)} rows for {len(images)} images"
    assert bool(features.isfinite().all()), f"{subject.name}.embed: NaN or infinite features"


def check_inputs_are_left_alone(subject: Subject) -> None:
    """A forward pass changes no image."""
    network, images = _made(subject), _images()
    before = images.clone()
    network(images)
    assert torch.equal(images, before), f"{subject.name} changes the images; take operations that are out of place"


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_logits,
    check_every_parameter_gets_a_gradient,
    check_can_be_differentiated_twice,
    check_weights_follow_the_seed,
    check_evaluation_is_deterministic,
    check_features,
    check_inputs_are_left_alone,
]


def _made(subject: Subject, shape: tuple[int, int, int] = SHAPES[-1], seed: int = 0) -> Network:
    with seeded_layers(seed):
        network: Network = subject.plugin(shape, CLASSES, subject.config)
    return network


def _images(shape: tuple[int, int, int] = SHAPES[-1]) -> Tensor:
    return torch.randn(3, *shape, generator=make_generator(5))
