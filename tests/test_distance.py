"""The class-relevant feature distance: its formula as loops, and the properties that make it a score."""

import math

import pytest
import torch
from made_up import Factory, make_real

from dd_plugins.api import DivergedError, FolderArtifacts, IncompatibleError, MemoryArtifacts
from dd_plugins.priors.distance import ClassRelevantDistance
from dd_plugins.priors.reference import load_or_train_reference_classifier
from dd_plugins.seeds import make_generator

NETWORK = {"name": "convnet", "width": 4, "depth": 2}


@pytest.fixture(scope="module")
def real():
    return make_real(count=40)


@pytest.fixture(scope="module")
def classifier(real):
    return load_or_train_reference_classifier(real, NETWORK, Factory(real), MemoryArtifacts())


@pytest.fixture(scope="module")
def distance(classifier, real):
    return ClassRelevantDistance(classifier, real)


def some(real, count=3, seed=0):
    rows = real.train.per_class(count, make_generator(seed))
    return real.train.images(rows.flatten()), torch.arange(len(rows)).repeat_interleave(count)


def test_it_is_the_formula(classifier, real, distance):
    images, labels = some(real)
    head = classifier.classifier.weight.detach()
    with torch.no_grad():
        maps = classifier.taps(real.train.images())[-1]
        own = classifier.taps(images)[-1]
    channels, height, width = maps.shape[1:]
    total = 0.0
    within = torch.zeros(channels)
    for label in range(4):
        of_class = maps[real.train.labels == label]
        within += (of_class - of_class.mean(0)).square().mean((0, 2, 3)) / 4
    for label in range(4):
        mean, found = maps[real.train.labels == label].mean(0), own[labels == label].mean(0)
        weights = head[label].abs() / head[label].abs().sum()
        for k in range(channels):
            for row in range(height):
                for column in range(width):
                    weight = weights[(k * height + row) * width + column]
                    gap = (found[k, row, column] - mean[k, row, column]) / within[k].sqrt()
                    total += float(weight * gap**2) / 4
    assert distance(images, labels) == pytest.approx(total, rel=1e-4)


def test_the_variant_is_its_formula(classifier, real, distance):
    """In loops: an activation map is what each pixel of the last maps adds to the logit of its class."""
    weights = classifier.classifier.weight.detach()

    def seen(images, label):
        found = []
        with torch.no_grad():
            maps = classifier.taps(images)[-1]
        channels, height, width = maps.shape[1:]
        of_class = weights[label].view(channels, height, width)
        for one in maps:
            cam = torch.zeros(height, width)
            for channel in range(channels):
                cam += of_class[channel] * one[channel]
            cam = torch.where(cam > 0, cam, torch.zeros(()))
            found.append(cam / cam.max() if cam.max() > 0 else cam)
        return torch.stack(found).mean(0)

    images, labels = some(real)
    gaps = [
        seen(images[labels == label], label) - seen(real.train.images()[real.train.labels == label], label)
        for label in range(4)
    ]
    expected = float(torch.stack(gaps).square().mean())
    assert expected > 0
    assert distance.of_activations(images, labels) == pytest.approx(expected, rel=1e-4)


def test_activation_maps_add_up_to_logits(classifier, real, distance):
    """An independent way to the same map: without normalisation its sum is the logit less the bias."""
    images, labels = some(real)
    with torch.no_grad():
        logits = (classifier(images) - classifier.classifier.bias)[torch.arange(len(labels)), labels]
        maps = (distance.head[labels] * classifier.taps(images)[-1]).sum((1, 2, 3))
    torch.testing.assert_close(maps, logits, rtol=1e-4, atol=1e-5)


def test_the_real_set_itself_has_none(real, distance):
    assert distance(real.train.images(), real.train.labels) == pytest.approx(0, abs=1e-8)
    assert distance.of_activations(real.train.images(), real.train.labels) == pytest.approx(0, abs=1e-8)


def test_real_images_are_nearer_than_noise_and_than_those_of_other_classes(real, distance):
    images, labels = some(real)
    noise = torch.randn(images.shape, generator=make_generator(1))
    assert distance(images, labels) < distance(noise, labels)
    assert distance(images, labels) < distance(images.roll(3, 0), labels)


def test_it_is_the_same_every_time_and_in_any_order(real, distance):
    images, labels = some(real)
    order = torch.randperm(len(labels), generator=make_generator(2))
    assert distance(images, labels) == distance(images, labels)
    assert distance.of_activations(images, labels) == distance.of_activations(images, labels)
    assert distance(images[order], labels[order]) == pytest.approx(distance(images, labels), rel=1e-5)


def test_labels_are_names_alone(real, classifier, distance):
    shift = torch.tensor([2, 0, 3, 1])  # class k is called shift[k]
    renamed = make_real(count=40)
    object.__setattr__(renamed.train, "labels", shift[real.train.labels])
    other = Factory(real)(0)
    other.load_state_dict(classifier.state_dict())
    with torch.no_grad():
        other.classifier.weight[shift] = classifier.classifier.weight.clone()
    images, labels = some(real)
    under_names = ClassRelevantDistance(other, renamed)
    assert under_names(images, shift[labels]) == pytest.approx(distance(images, labels), rel=1e-5)
    variant = under_names.of_activations(images, shift[labels])
    assert variant == pytest.approx(distance.of_activations(images, labels), rel=1e-5)


def test_a_reference_classifier_is_trained_once(real, tmp_path, monkeypatch):
    first = load_or_train_reference_classifier(real, NETWORK, Factory(real), FolderArtifacts(tmp_path))
    monkeypatch.setattr("dd_plugins.priors.reference.train_networks", lambda *_, **__: pytest.fail("trained again"))
    second = load_or_train_reference_classifier(real, NETWORK, Factory(real), FolderArtifacts(tmp_path))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(pytest.fail.Exception):
        load_or_train_reference_classifier(
            real, {**NETWORK, "width": 5}, Factory(real, width=5), FolderArtifacts(tmp_path)
        )


def test_a_reference_classifier_is_the_same_whenever_it_is_trained(real):
    first, second = (
        load_or_train_reference_classifier(real, NETWORK, Factory(real), MemoryArtifacts()) for _ in range(2)
    )
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_reference_classifier_that_diverged_is_not_kept(real, tmp_path, monkeypatch):
    def diverge(networks, *_, **__):
        with torch.no_grad():
            next(networks[0].parameters()).fill_(math.nan)

    monkeypatch.setattr("dd_plugins.priors.reference.train_networks", diverge)
    with pytest.raises(DivergedError, match="reference classifier diverged"):
        load_or_train_reference_classifier(real, NETWORK, Factory(real), FolderArtifacts(tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_networks_with_another_head_are_refused_before_any_is_trained(real, monkeypatch):
    def make(seed):
        network = Factory(real)(seed)
        network.classifier = torch.nn.Sequential(torch.nn.Linear(16, 7), torch.nn.Linear(7, 4))
        return network

    monkeypatch.setattr("dd_plugins.priors.reference.train_networks", None)
    with pytest.raises(IncompatibleError, match="linear in its last maps"):
        load_or_train_reference_classifier(real, NETWORK, make, MemoryArtifacts())
    with pytest.raises(IncompatibleError, match="linear in its last maps"):
        ClassRelevantDistance(make(0), real)


def test_a_head_on_mean_maps_weighs_all_their_pixels_alike(real):
    """The same network twice: once it averages its last maps, once it has that average in its weights."""
    mean, whole = Factory(real)(0), Factory(real)(0)
    channels, height, width = mean.taps(real.train.images()[:1])[-1].shape[1:]
    mean.classifier = torch.nn.Linear(channels, 4)
    spread = mean.classifier.weight.detach()[:, :, None, None].expand(-1, -1, height, width) / (height * width)
    with torch.no_grad():
        whole.classifier.weight.copy_(spread.flatten(1))
    images, labels = some(real)
    one, other = ClassRelevantDistance(mean, real), ClassRelevantDistance(whole, real)
    assert one(images, labels) == pytest.approx(other(images, labels), rel=1e-6)
    assert one.of_activations(images, labels) == pytest.approx(other.of_activations(images, labels), rel=1e-5)


def test_a_reference_classifier_that_learned_nothing_is_told(real, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("dd_plugins.priors.reference.train_networks", lambda *_, **__: None)
    monkeypatch.setattr("dd_plugins.priors.reference.accuracy", lambda *_: 0.26)
    with caplog.at_level("WARNING", "dd_plugins"):
        load_or_train_reference_classifier(real, NETWORK, Factory(real), FolderArtifacts(tmp_path))
    assert "reaches 0.260 only" in caplog.text
