"""k-center against a naive loop, its guarantee against trying all subsets, and the command."""

import itertools
import json
import math

import pytest
import torch
from made_up import Factory, make_real
from tiny_runs import command
from torch import nn

from dd_plugins.api import Context, IncompatibleError, Network, StorageLedger, SyntheticSet
from dd_plugins.dynamics import features
from dd_plugins.pruning.features import k_center
from dd_plugins.pruning.strategies import KCenter
from dd_plugins.seeds import make_generator


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=make_generator(seed))


def order_of(score, targets, label):
    """The rows of a class in the order in which they were taken."""
    rows = torch.nonzero(targets == label).flatten().tolist()
    return sorted(rows, key=lambda row: -score[row])


def naive(found, targets, label):
    """Point by point and center by center, in plain numbers."""
    rows = torch.nonzero(targets == label).flatten().tolist()
    points = {}
    for row in rows:
        points[row] = []
        for part in found:
            own = part[row].double().tolist()
            length = math.sqrt(sum(value * value for value in own))
            points[row] += [value / length for value in own]
    mean = [sum(values) / len(rows) for values in zip(*points.values(), strict=True)]
    taken = [min(rows, key=lambda row: math.dist(points[row], mean))]
    while len(taken) < len(rows):
        free = [row for row in rows if row not in taken]
        taken.append(max(free, key=lambda row: min(math.dist(points[row], points[center]) for center in taken)))
    return taken


@pytest.mark.parametrize("networks", [1, 3])
def test_it_is_the_naive_loop(networks):
    targets = torch.arange(60) % 3
    found = [noise(60, 5 + number, seed=number) for number in range(networks)]
    score = k_center(found, targets)
    for label in range(3):
        assert order_of(score, targets, label) == naive(found, targets, label)
        assert sorted(score[targets == label].tolist()) == list(range(20))


def test_ties_go_to_the_lowest_index_and_copies_come_last():
    points = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 1, 0, 2]), 3).float()
    targets = torch.zeros(6, dtype=torch.int64)
    score = k_center([points], targets)  # every point is as far from the mean, and from all but its own copy
    assert order_of(score, targets, 0) == [0, 1, 2, 3, 4, 5]
    many = noise(1, 33).expand(17, -1)
    assert order_of(k_center([many], torch.zeros(17, dtype=torch.int64)), torch.zeros(17), 0) == list(range(17))


def test_its_radius_is_at_most_twice_the_least_one():
    for seed in range(5):
        points = nn.functional.normalize(noise(12, 3, seed=seed).double())
        distances = torch.cdist(points, points)
        taken = order_of(k_center([points], torch.zeros(12, dtype=torch.int64)), torch.zeros(12), 0)
        for count in (2, 3, 4):
            least = min(distances[list(own)].amin(0).max() for own in itertools.combinations(range(12), count))
            radius = distances[taken[:count]].amin(0).max()
            assert radius <= 2 * least + 1e-12
            apart = distances[taken[:count]][:, taken[:count]] + 10 * torch.eye(count)
            assert apart.min() >= radius  # centers are as far from each other as the farthest point is


def test_the_strategy_takes_the_features_of_its_networks():
    real = make_real()
    images = SyntheticSet("x", real.spec, real.train.images(), real.train.labels, StorageLedger.of([]))
    factory = Factory(real)
    strategy = KCenter({"networks": 2, "epochs": 2, "batch_size": 16})
    score = strategy.score(images, Context(factory, make_generator(0), 1, torch.device("cpu")))
    trained = [features(network, images.images) for network, _ in factory.born]
    assert torch.equal(score, k_center(trained, images.targets))
    kept = strategy.select(score, images.targets, 24)
    assert torch.bincount(images.targets[kept]).tolist() == [6] * 4  # every class keeps its share
    for label in range(4):
        own = sorted(kept[images.targets[kept] == label].tolist())
        assert own == sorted(naive(trained, images.targets, label)[:6])


class Featureless(Network):
    """A network that cannot embed."""

    api_version = 2

    def __init__(self, spec):
        super().__init__(spec.image_shape, spec.num_classes)
        self.layer = nn.Linear(math.prod(spec.image_shape), spec.num_classes)

    def forward(self, images):
        raise AssertionError("trained, though it has no features")


def test_a_network_without_features_is_refused_before_it_is_trained():
    real = make_real()
    images = SyntheticSet("x", real.spec, real.train.images(), real.train.labels, StorageLedger.of([]))
    context = Context(lambda seed: Featureless(real.spec), make_generator(0), 1, torch.device("cpu"))
    for config in ({}, {"score": "herding"}):
        with pytest.raises(IncompatibleError, match="no features to embed"):
            KCenter({"networks": 1, "epochs": 1, **config}).score(images, context)


def test_the_command_prunes_by_it_and_the_seed_decides(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["prune", "--dataset", "digits", "--keep", "0.05", "--strategy", "k-center", "--protocol", "quick"]
    for text in ("pruning.networks=1", "pruning.epochs=2", "network.width=4", "protocol.trials=1",
                 "protocol.train.epochs=1", "protocol.network.width=4"):  # fmt: skip
        words += ["--set", text]
    kept = []
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert command(*words, "--seed", seed, "--out", tmp_path / folder) == 0
        assert "k-center, 5% kept" in capsys.readouterr().out.replace("\n", " ")
        (record,) = (tmp_path / folder).glob("*/record.json")
        kept.append(json.loads(record.read_text())["pruning"]["kept"])
    assert kept[0] == kept[1] != kept[2]
