"""The training loop: its plan, its steps against the published loop written out, stacked networks and accuracy."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from dd_plugins.api import DataSpec
from dd_plugins.networks import build_network
from dd_plugins.seeds import make_generator
from dd_plugins.training import Plan, TrainConfig, accuracy, build_augmentation, train_networks

DATA = DataSpec("made-up", 3, (2, 8, 8), (0.5, 0.5), (0.25, 0.25))


def make_networks(count, **config):
    settings = {"width": 6, **config}
    return [build_network("convnet", DATA.image_shape, 3, settings, seed=seed) for seed in range(count)]


def make_images(count, seed=0):
    generator = make_generator(seed)
    images = torch.randn(count, *DATA.image_shape, generator=generator)
    return images, torch.arange(count) % 3


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def train(networks, images, targets, config, seeds=None, **options):
    seeds = list(range(len(networks))) if seeds is None else seeds
    train_networks(networks, images, targets, config, DATA, seeds=seeds, **options)
    return networks


# --------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize(("last", "before", "behind"), [(1000, 502, 499), (300, 152, 149), (600, 302, 299)])
@pytest.mark.parametrize("count", [10, 256])
def test_half_counts_the_epochs_of_the_published_loop(last, before, behind, count):
    plan = Plan.of(TrainConfig(epochs=last + 1), count)
    looped = [epoch <= last // 2 + 1 for epoch in range(last + 1)]  # it drops when epoch E // 2 + 1 is done
    assert (sum(looped), len(looped) - sum(looped)) == (before, behind)
    assert plan == Plan(before + behind, 1, (before,), 0.1)


def test_an_epoch_has_an_update_for_every_batch():
    assert Plan.of(TrainConfig(epochs=11), 257) == Plan(22, 2, (2 * 7,), 0.1)
    assert Plan.of(TrainConfig(epochs=1), 10).total == 1
    assert Plan.of(TrainConfig(epochs=10, schedule="constant"), 10).drops == ()


@pytest.mark.parametrize(("count", "unit"), [(64, 1), (65, 2)])
def test_multistep_drops_at_two_thirds_and_five_sixths(count, unit):
    plan = Plan.of(TrainConfig(epochs=1000, batch_size=64, schedule="multistep"), count)
    assert plan == Plan(1000 * unit, unit, (666 * unit, 833 * unit), 0.2)


@pytest.mark.parametrize("schedule", ["half", "multistep", "cosine"])
@pytest.mark.parametrize(("decoded", "budget"), [(850, 10), (2780, 100), (11680, 500), (500, 500)])
def test_match_updates_takes_the_updates_of_pixels(decoded, budget, schedule):
    config = TrainConfig(epochs=301, schedule=schedule)
    pixels = Plan.of(config, budget)
    matched = Plan.of(config.model_copy(update={"match_updates": True}), decoded, budget)
    assert matched.per_epoch == math.ceil(decoded / 256)
    assert replace(matched, per_epoch=pixels.per_epoch) == pixels
    assert Plan.of(config, decoded, budget) == Plan.of(config, decoded)


def test_match_updates_in_training():
    images, targets = make_images(20)
    config = TrainConfig(epochs=5, batch_size=4, match_updates=True, augmentation="none")
    seen, calls = [], []
    train(make_networks(1), lambda rows: (seen.append(rows), images[rows])[1], targets, config, budget_images=6,
          on_update=lambda *call: calls.append(call))  # fmt: skip
    assert calls == [(k + 1, 10) for k in range(10)]  # 5 epochs of 2 batches of pixels
    assert [len(rows) for rows in seen] == [4] * 10
    assert torch.equal(torch.cat(seen[:5]).sort().values, torch.arange(20))  # still epochs of all images


# ------------------------------------------------------------------------------------------------ one update


def rate(schedule, lr, epoch, epochs, update, updates):
    """The learning rate of an update as the literature's loops set it."""
    if schedule == "half":
        return lr * (0.1 if epoch > (epochs - 1) // 2 + 1 else 1)
    if schedule == "multistep":
        return lr * 0.2 ** ((epoch >= 2 * epochs // 3) + (epoch >= 5 * epochs // 6))
    return lr * (1 + math.cos(math.pi * update / updates)) / 2 if schedule == "cosine" else lr


@pytest.mark.parametrize("schedule", ["constant", "half", "multistep", "cosine"])
def test_sequential_is_the_published_loop(schedule):
    images, targets = make_images(20)
    config = TrainConfig(epochs=12, batch_size=8, lr=0.05, weight_decay=0.01, schedule=schedule, augmentation="none")
    (network,), seen = make_networks(1), []
    naive = deepcopy(network)
    train([network], lambda rows: (seen.append(rows), images[rows])[1], targets, config, seeds=[4])
    assert [len(rows) for rows in seen] == [8, 8, 4] * 12
    momenta = None
    for epoch in range(12):
        batches = seen[3 * epoch : 3 * epoch + 3]
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(20))
        for number, rows in enumerate(batches):
            log_probability = torch.log_softmax(naive(images[rows]), 1)
            loss = -sum(log_probability[k, targets[row]] for k, row in enumerate(rows)) / len(rows)
            grads = torch.autograd.grad(loss, list(naive.parameters()))
            grads = [g + 0.01 * p.detach() for g, p in zip(grads, naive.parameters(), strict=True)]
            momenta = grads if momenta is None else [0.9 * m + g for m, g in zip(momenta, grads, strict=True)]
            lr = rate(schedule, 0.05, epoch, 12, 3 * epoch + number, 36)
            with torch.no_grad():
                for parameter, momentum in zip(naive.parameters(), momenta, strict=True):
                    parameter -= lr * momentum
        if schedule == "half" and epoch == 11 // 2 + 1:
            momenta = None  # the optimizer is made anew
    assert len({tuple(rows.tolist()) for rows in seen}) == 36  # a new order every epoch
    torch.testing.assert_close(weights(network), weights(naive), atol=2e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------------- many networks

RECIPES = {
    "dsa": TrainConfig(epochs=8, batch_size=8, cutmix=0.5),
    "idc": TrainConfig(epochs=8, batch_size=8, cutmix=0.5, augmentation="idc", schedule="multistep"),
}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_stacked_is_sequential(recipe):
    images, targets = make_images(20)
    test_images, test_targets = make_images(300, seed=1)
    start = weights(make_networks(1)[0])
    one = train(make_networks(3), images, targets, RECIPES[recipe], strategy="sequential")
    other = train(make_networks(3), images, targets, RECIPES[recipe], strategy="stacked")
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(weights(second), weights(first), atol=1e-4, rtol=0)
        assert accuracy(first, test_images, test_targets) == accuracy(second, test_images, test_targets)
    assert (weights(one[0]) - start).abs().max() > 1e-2  # something was learned at all


def test_networks_with_buffers_fall_back_to_sequential():
    images, targets = make_images(20)
    one, other = (
        train(make_networks(2, norm="batch"), images, targets, RECIPES["dsa"], strategy=strategy)
        for strategy in ("sequential", "stacked")
    )
    for first, second in zip(one, other, strict=True):
        for name, value in first.state_dict().items():
            assert torch.equal(value, second.state_dict()[name]), name
    assert int(one[0].features[0][1].num_batches_tracked) == 8 * 3


@pytest.mark.parametrize("strategy", ["sequential", "side-by-side", "stacked"])
def test_neighbours_change_nothing(strategy):
    images, targets = make_images(20)
    together = train(make_networks(3), images, targets, RECIPES["dsa"], seeds=[3, 4, 5], strategy=strategy)
    alone = train(make_networks(3)[1:2], images, targets, RECIPES["dsa"], seeds=[4], strategy=strategy)
    pair = train(make_networks(3)[1:], images, targets, RECIPES["dsa"], seeds=[4, 5], strategy=strategy)
    other = train(make_networks(3)[1:2], images, targets, RECIPES["dsa"], seeds=[6], strategy=strategy)
    tolerance = 1e-4 if strategy == "stacked" else 0
    torch.testing.assert_close(weights(together[1]), weights(alone[0]), atol=tolerance, rtol=0)
    torch.testing.assert_close(weights(together[1]), weights(pair[0]), atol=tolerance, rtol=0)
    assert (weights(other[0]) - weights(alone[0])).abs().max() > 1e-3


@pytest.mark.parametrize("strategy", ["sequential", "side-by-side", "stacked"])
def test_updates_are_reported(strategy):
    images, targets = make_images(20)
    calls, before = [], torch.get_rng_state()
    config = TrainConfig(epochs=3, batch_size=8)
    train(make_networks(2), images, targets, config, strategy=strategy, on_update=lambda *c: calls.append(c))
    assert calls == [(k, 18) for k in range(1, 19)]
    assert torch.equal(torch.get_rng_state(), before)


def test_images_may_be_a_function():
    images, targets = make_images(20)
    config = TrainConfig(epochs=3, batch_size=8)
    (one,) = train(make_networks(1), images, targets, config)
    (other,) = train(make_networks(1), lambda rows: images[rows], targets, config)
    assert torch.equal(weights(one), weights(other))


def test_augmentations_of_the_recipes():
    assert build_augmentation(TrainConfig(augmentation="none"), DATA).slots == ()
    six = ("color", "crop", "cutout", "flip", "scale", "rotate")
    assert build_augmentation(TrainConfig(), DATA).slots == (six,)
    assert build_augmentation(TrainConfig(strategy="crop_flip"), DATA).slots == (("crop", "flip"),)
    digits = build_augmentation(TrainConfig(), replace(DATA, mirror=False))
    assert digits.slots == (tuple(name for name in six if name != "flip"),)
    always = (("flip",), ("color",), ("crop", "scale", "rotate"))
    assert build_augmentation(TrainConfig(augmentation="idc"), DATA).slots == (*always, ("cutout",))
    assert build_augmentation(TrainConfig(augmentation="idc", cutmix=0.5), DATA).slots == always


# ------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_accuracy_counts(norm):
    images, targets = make_images(31)
    (network,) = train(make_networks(1, norm=norm), images, targets, TrainConfig(epochs=20, augmentation="none"))
    network.eval()
    right = sum(
        int(network(image[None])[0].argmax()) == int(target) for image, target in zip(images, targets, strict=True)
    )
    assert right > 0
    for batch_size in (1, 7, 512):
        network.train()
        assert accuracy(network, images, targets, batch_size) == pytest.approx(right / 31)
    assert accuracy(network, lambda rows: images[rows], targets, 7) == pytest.approx(right / 31)
    assert accuracy(network, images, (targets + 1) % 3) <= 1 - right / 31
