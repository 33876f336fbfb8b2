"""Gradient matching: distances against loops over rows, image gradients against a naive loop over classes."""

import pytest
import torch
from torch.nn import functional

from dd_plugins.augmentation import Augmentation, Draw
from dd_plugins.matching import TrainedNetwork, class_gradients, gradient_distance, match_classes
from dd_plugins.matching.gradients import CPU_IMAGES
from dd_plugins.networks import build_network
from dd_plugins.seeds import make_generator

METRICS = ("dc", "mse", "l1", "cosine")
SHAPE, CLASSES = (2, 8, 8), 3


def make_network(**config):
    settings = {"width": 5, "depth": 2, **config}
    return build_network("convnet", SHAPE, CLASSES, settings, seed=0).double()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=make_generator(seed), dtype=torch.float64)


def gradients_like(network, seed):
    generator = make_generator(seed)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in network.parameters()]


def distance_of_rows(real, synthetic):
    """DC's distance, one output row after the other; what has one dimension counts nothing."""
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(real, synthetic, strict=True):
        if one.ndim == 1:
            continue
        for row in range(one.shape[0]):
            a, b = one[row].reshape(-1), other[row].reshape(-1)
            total = total + 1 - torch.dot(a, b) / (torch.dot(a, a).sqrt() * torch.dot(b, b).sqrt() + 1e-6)
    return total


def naive_distance(real, synthetic, metric):
    if metric == "dc":
        return distance_of_rows(real, synthetic)
    pairs = [(a.reshape(-1), b.reshape(-1)) for a, b in zip(real, synthetic, strict=True) if a.ndim == 4]
    if metric == "cosine":
        return sum(1 - torch.dot(a, b) / (torch.dot(a, a) * torch.dot(b, b)).sqrt() for a, b in pairs)
    return sum((((a - b) ** 2) if metric == "mse" else (a - b).abs()).sum() for a, b in pairs)


# ----------------------------------------------------------------------------------------------------- distance


@pytest.mark.parametrize("norm", ["instance", "layer", "none"])
@pytest.mark.parametrize("metric", METRICS)
def test_distance_is_the_naive_one(metric, norm):
    network = make_network(norm=norm)
    real, synthetic = gradients_like(network, 1), gradients_like(network, 2)
    synthetic[0][0] *= 1e-4  # where the 1e-6 beside the norms matters
    torch.testing.assert_close(
        gradient_distance(real, synthetic, metric), naive_distance(real, synthetic, metric), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("metric", METRICS)
def test_which_parameters_count(metric):
    network = make_network(norm="layer")  # whose weights have three dimensions
    real, synthetic = gradients_like(network, 1), gradients_like(network, 2)
    before = gradient_distance(real, synthetic, metric)
    for position, gradient in enumerate(synthetic):
        changed = [g + 1 if k == position else g for k, g in enumerate(synthetic)]
        moved = not torch.equal(gradient_distance(real, changed, metric), before)
        assert moved == (gradient.ndim > 1 if metric == "dc" else gradient.ndim == 4), gradient.shape
    assert {gradient.ndim for gradient in synthetic} == {1, 2, 3, 4}


@pytest.mark.parametrize("metric", METRICS)
def test_linear_gradients_do_not_count_for_idc(metric):
    network, (real, images) = make_network(), noise(2, 6, *SHAPE)
    labels = torch.zeros(6, dtype=torch.int64)

    def gradients(batch, factor):
        grads = torch.autograd.grad(functional.cross_entropy(network(batch), labels), list(network.parameters()))
        return [factor * g if g.ndim == 2 else g for g in grads]

    plain = gradient_distance(gradients(real, 1), gradients(images, 1), metric)
    assert torch.equal(gradient_distance(gradients(real, 1), gradients(images, -3), metric), plain) == (metric != "dc")


def test_394_rows_of_the_standard_network():
    network = build_network("convnet", (3, 32, 32), 10, seed=0)
    assert sum(p.numel() for p in network.parameters()) == 320_010
    vectors = gradients_like(network, 1)
    zeros = [torch.zeros_like(g) for g in vectors]
    assert float(gradient_distance(vectors, zeros, "dc")) == 3 * 128 + 10
    assert float(gradient_distance(vectors, [-g for g in vectors], "dc")) == pytest.approx(2 * 394, rel=1e-5)
    images = torch.randn(2, 8, 3, 32, 32, generator=make_generator(0))
    one, other = class_gradients(network, [0, 0], list(images), "dc")
    # Published for a fresh network and eight images of noise: about 238, and 0.036 from itself.
    assert float(gradient_distance(one, other, "dc")) == pytest.approx(238, abs=40)
    squares = torch.cat([g.double().flatten(1).square().sum(1) for g in one])
    itself = gradient_distance([g.double() for g in one], [g.double() for g in one], "dc")
    assert 0 < float(itself) < 0.2
    torch.testing.assert_close(itself, (1e-6 / (squares + 1e-6)).sum())


@pytest.mark.parametrize("metric", ["dc", "cosine"])
def test_positive_scale_does_not_matter(metric):
    network = make_network()
    real, synthetic = gradients_like(network, 1), gradients_like(network, 2)
    scaled = [7 * g for g in synthetic]
    before, behind = (gradient_distance(real, other, metric) for other in (synthetic, scaled))
    torch.testing.assert_close(before, behind, atol=1e-4, rtol=0)
    assert float(gradient_distance(real, [g + r for g, r in zip(synthetic, real, strict=True)], metric)) < before


@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_equal_gradients_have_no_distance(metric):
    vectors = gradients_like(make_network(), 1)
    assert float(gradient_distance(vectors, vectors, metric)) == 0


# ------------------------------------------------------------------------------------------------ whole classes


def naive_match(network, labels, real, images, augmentation, draw, metric):
    """Class after class, all parameters, the distance row by row, one graph for everything."""
    leaves = [batch.clone().requires_grad_() for batch in images]
    parameters, total = list(network.parameters()), 0
    for label, real_batch, leaf in zip(labels, real, leaves, strict=True):
        record = Draw(draw.choice[label : label + 1], draw.noise[label : label + 1])  # siamese: one for both
        sides = []
        for batch, graph in ((real_batch, False), (leaf, True)):
            log_probability = torch.log_softmax(network(augmentation(batch, record)), 1)[:, label]
            sides.append(torch.autograd.grad(-log_probability.mean(), parameters, create_graph=graph))
        total = total + naive_distance(*sides, metric)
    return total.detach(), torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("strategy", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("labels", [(0, 1, 2), (2, 0)])
def test_match_classes_is_the_naive_loop(metric, strategy, labels):
    network, augmentation = make_network(), Augmentation.dsa("color_crop_cutout_flip_scale_rotate")
    real, images = noise(len(labels), 7, *SHAPE, seed=1), noise(len(labels), 2, *SHAPE, seed=2)
    before = [p.detach().clone() for p in network.parameters()]
    for seed in range(3):
        draw = augmentation.draw(CLASSES, make_generator(seed), one_choice=False)

        def augment(batch, classes, draw=draw):
            return augmentation(batch, draw, classes)

        augmented = [augment(b, torch.full((7,), label)) for label, b in zip(labels, real, strict=True)]
        expected = class_gradients(network, labels, augmented, metric, strategy)
        loss, grads = match_classes(network, labels, expected, list(images), augment, metric, strategy)
        naive_loss, naive_grads = naive_match(network, labels, real, images, augmentation, draw, metric)
        torch.testing.assert_close(loss, naive_loss, atol=0, rtol=1e-6)
        assert not loss.requires_grad
        for grad, naive_grad in zip(grads, naive_grads, strict=True):
            assert (grad - naive_grad).norm() <= 1e-5 * naive_grad.norm()
            assert naive_grad.norm() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))
    assert not images.requires_grad
    assert images.grad is None


@pytest.mark.parametrize("metric", METRICS)
def test_loop_takes_unequal_classes(metric):
    network, real = make_network(), [noise(4, *SHAPE, seed=1), noise(9, *SHAPE, seed=2)]
    images = [noise(1, *SHAPE, seed=3), noise(5, *SHAPE, seed=4)]
    nothing = Augmentation(())
    draw = nothing.draw(CLASSES, make_generator(0), one_choice=False)
    expected = class_gradients(network, [0, 2], real, metric)
    loss, grads = match_classes(network, [0, 2], expected, images, lambda batch, _: batch, metric)
    naive_loss, naive_grads = naive_match(network, [0, 2], real, images, nothing, draw, metric)
    torch.testing.assert_close(loss, naive_loss)
    for grad, naive_grad in zip(grads, naive_grads, strict=True):
        torch.testing.assert_close(grad, naive_grad)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_class_gradients_are_those_of_the_cross_entropy(metric, strategy):
    network, batches = make_network(), list(noise(2, 6, *SHAPE))
    counted = [p for p in network.parameters() if (p.ndim > 1 if metric == "dc" else p.ndim == 4)]
    for label, batch, found in zip(
        (2, 1), batches, class_gradients(network, [2, 1], batches, metric, strategy), strict=True
    ):
        loss = functional.cross_entropy(network(batch), torch.full((6,), label))
        for gradient, expected in zip(found, torch.autograd.grad(loss, counted), strict=True):
            torch.testing.assert_close(gradient, expected)
            assert not gradient.requires_grad


# ------------------------------------------------------------------------------------------------ trained networks


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_class_gradients_of_many_images_are_those_of_the_whole_batch(norm):
    network = make_network(norm=norm).train()  # on the CPU taken in parts, which BatchNorm forbids
    images = noise(CPU_IMAGES * 2 + 5, 2, 8, 8)
    parameters = [p for p in network.parameters() if p.ndim > 1]
    loss = functional.cross_entropy(network(images), torch.full((len(images),), 1))
    expected = torch.autograd.grad(loss, parameters)
    (found,) = class_gradients(network, [1], [images], "dc", "loop")
    torch.testing.assert_close(list(found), list(expected), atol=1e-12, rtol=1e-9)


def test_trained_network_goes_on_from_its_state():
    from dd_plugins.augmentation import cutmix

    def batch(seed):
        targets = torch.randint(CLASSES, (6,), generator=make_generator(seed))
        return cutmix(noise(6, *SHAPE, seed=seed), targets, 0.5, make_generator(seed))

    first = TrainedNetwork(make_network(norm="batch"), 0.1, 0.9, 5e-4)
    for seed in range(3):
        first.update(batch(seed))
    second = TrainedNetwork(make_network(norm="batch"), 0.1, 0.9, 5e-4)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for seed in range(3, 6):
        first.update(batch(seed))
        second.update(batch(seed))
    assert first.updates == second.updates == 6
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
