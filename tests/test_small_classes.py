"""What objectives take from a class that has fewer training images than a real batch."""

import pytest
import torch
from made_up import Factory
from torch.nn import functional

from dd_plugins.api import Context, RawData
from dd_plugins.datasets import build_real_data
from dd_plugins.objectives.dc import DC
from dd_plugins.objectives.dm import DM
from dd_plugins.objectives.dsa import DSA
from dd_plugins.seeds import make_generator

SIZES = (3, 3, 6)  # training images of each class


@pytest.fixture(scope="module")
def real():
    labels = torch.cat([torch.full((size + 1,), label) for label, size in enumerate(SIZES)])  # one for validation
    images = torch.randint(0, 256, (len(labels), 2, 8, 8), dtype=torch.uint8, generator=make_generator(0))
    return build_real_data("small", RawData(images, labels, images[:2], labels[:2], ("a", "b", "c")))


@pytest.mark.parametrize("count", [1, 3, 4, 6, 8, 20])
def test_a_class_repeats_its_images_as_evenly_as_it_can(real, count):
    rows = real.train.per_class(count, make_generator(1))
    for label, size in enumerate(SIZES):
        times = torch.bincount(rows[label], minlength=len(real.train))[real.train.labels == label]
        assert sorted(times.tolist(), reverse=True) == expected(count, size)
        assert int((real.train.labels[rows[label]] == label).sum()) == count


def expected(count, size):
    """Dealt out like cards: how often each of ``size`` images appears in a batch of ``count``."""
    times = [0] * size
    for number in range(count):
        times[number % size] += 1
    return times


def prepared(cls, real, **config):
    objective, targets = cls(real.spec, config), torch.arange(3).repeat_interleave(2)
    objective.prepare(real, targets, Context(Factory(real, fixed=0), make_generator(0), 10, torch.device("cpu")))
    return objective


def naive(real, images, targets, network, batches):
    """The distance of DC between the gradients of given real batches and of the synthetic images, class by class."""
    total = torch.zeros(())
    for label, batch in enumerate(batches):
        gradients = []
        for side in (batch, images[targets == label]):
            loss = functional.cross_entropy(network(side), torch.full((len(side),), label))
            gradients.append(torch.autograd.grad(loss, list(network.parameters())))
        for one, other in zip(*gradients, strict=True):
            if one.ndim > 1:
                one, other = one.flatten(1), other.flatten(1)
                cosine = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1) + 1e-6)
                total = total + (1 - cosine).sum()
    return total


@pytest.mark.parametrize("cls", [DC, DSA])
@pytest.mark.parametrize("batch", [6, 12])
def test_a_class_whose_images_all_repeat_equally_often_gives_its_mean_gradient(real, cls, batch):
    settings = {"strategy": "none"} if cls is DSA else {}
    objective = prepared(cls, real, batch_real=batch, **settings)
    images = torch.randn(6, 2, 8, 8, generator=make_generator(2))
    found = objective.match(images, objective.targets, 0)
    once = [real.train.images(rows) for rows in real.train.class_rows()]  # 3, 3 and 6 images, each once
    told = naive(real, images, objective.targets, Factory(real, fixed=0)(0), once)
    torch.testing.assert_close(found.loss, told, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [DC, DSA])
def test_a_class_that_does_not_divide_the_batch_counts_some_images_once_more(real, cls):
    settings = {"strategy": "none"} if cls is DSA else {}
    objective, same = (prepared(cls, real, batch_real=4, **settings) for _ in range(2))
    images = torch.randn(6, 2, 8, 8, generator=make_generator(2))
    found = objective.match(images, objective.targets, 0)
    network = same.network_for(images, same.targets, 0)
    drawn = same.real.train.per_class(4, same.context.generator)
    assert [len(rows.unique()) for rows in drawn] == [3, 3, 4]
    repeated = [real.train.images(rows) for rows in drawn]
    torch.testing.assert_close(found.loss, naive(real, images, same.targets, network, repeated), rtol=1e-4, atol=1e-5)
    smaller = [real.train.images(rows.unique()) for rows in drawn]  # the batch of the authors' code
    assert abs(found.loss - naive(real, images, same.targets, network, smaller)) > 1e-3


def test_the_two_images_of_a_repeated_row_have_one_augmentation(real):
    """Siamese: what repeats is repeated as it is, in the view of its class."""
    objective = prepared(DSA, real, batch_real=6, strategy="crop_flip")
    draw = objective.augmentation.draw(3, make_generator(3), one_choice=False)
    rows = real.train.per_class(6, make_generator(4))[0]
    seen = objective.augmentation(real.train.images(rows), draw, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(seen[:3], seen[3:])


def test_distribution_matching_weighs_as_many(real):
    objective = prepared(DM, real, batch_real=6, strategy="none")
    images = torch.randn(6, 2, 8, 8, generator=make_generator(2))
    found = objective.match(images, objective.targets, 0)
    network, told = Factory(real, fixed=0)(0), torch.zeros(())
    for label, rows in enumerate(real.train.class_rows()):
        gap = network.embed(real.train.images(rows)).mean(0) - network.embed(images[objective.targets == label]).mean(0)
        told = told + gap.square().sum()
    torch.testing.assert_close(found.loss, told.detach(), rtol=1e-4, atol=1e-5)
