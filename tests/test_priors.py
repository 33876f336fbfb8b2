"""Layered generators: their contract, their training, their gates, and what is refused on disk."""

import ast
import hashlib
import importlib.util
import io
import json
import math
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import Factory, Mirror, make_real
from rich.console import Console
from safetensors.torch import load_file, save_file

from benchmark_adapters.cli.progress import Reporter
from dd_plugins.api import (
    DataError,
    FolderArtifacts,
    LayeredGenerator,
    MemoryArtifacts,
    PluginContractError,
    Split,
    locked,
)
from dd_plugins.api.progress import silent_job
from dd_plugins.priors import find
from dd_plugins.priors.base import check_contract
from dd_plugins.priors.find import MeasuredGates, TrainedPrior
from dd_plugins.priors.gan import Discriminator, GanTrainer
from dd_plugins.priors.gates import Gates, _sizes, learned_nothing, measure, sample, within_class
from dd_plugins.priors.small import SmallConfig, SmallGenerator, sides
from dd_plugins.priors.store import load_prior, save_prior
from dd_plugins.priors.train import PriorRecipe
from dd_plugins.priors.vae import SmallAutoEncoder, VaeTrainer
from dd_plugins.seeds import make_generator
from dd_plugins.training import TrainConfig

NETWORK = {"name": "convnet", "width": 4, "depth": 2}
TINY = {"width": 6, "noise": 4, "style": 5, "steps": 4, "classes": 3, "images": 2}
GENERATORS, TRAINERS = {"gan": SmallGenerator, "vae": SmallAutoEncoder}, {"gan": GanTrainer, "vae": VaeTrainer}
SIZES = [(1, 8, 8), (3, 16, 16), (2, 28, 28), (3, 12, 20), (1, 9, 7)]


def small(shape=(2, 8, 8), kind="gan", classes=4, **config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = SmallConfig(image_shape=shape, num_classes=classes, **{"width": 6, "noise": 4, "style": 5, **config})
        return GENERATORS[kind](config).eval().requires_grad_(False)


def styles_of(prior, count=3, seed=0):
    return prior.sample_styles(torch.arange(count) % prior.num_classes, make_generator(seed))


# ---- the contract --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gan", "vae"])
@pytest.mark.parametrize("shape", SIZES)
def test_the_small_generators_keep_the_contract(kind, shape):
    prior = small(shape, kind)
    check_contract(prior)
    assert prior(styles_of(prior)).shape == (3, *shape)


def test_stages_of_the_small_generator():
    assert [sides(side) for side in (8, 32, 28, 12, 9)] == [[4, 8], [4, 8, 16, 32], [7, 14, 28], [3, 6, 12], [9]]
    assert [small((3, side, side)).num_stages for side in (8, 16, 32, 64)] == [4, 6, 8, 10]


def test_every_level_decodes_to_the_same_images():
    prior = small((3, 16, 16))
    styles = styles_of(prior)
    images = prior(styles)
    for level, state in enumerate(prior.states(styles)):
        torch.testing.assert_close(prior.decode_from(level, state, styles), images, atol=1e-5, rtol=0)


def test_styles_behind_a_level_are_dead_and_the_others_are_not():
    prior = small((3, 16, 16))
    styles = tuple(style.clone().requires_grad_() for style in styles_of(prior))
    states = list(prior.states(styles))
    for level in range(prior.num_stages):
        images = prior.decode_from(level, states[level], styles)
        grads = torch.autograd.grad(images.sum(), styles, allow_unused=True)
        assert [grad is not None and bool(grad.any()) for grad in grads] == [k >= level for k in range(len(styles))]


def test_chunked_gradients_are_the_whole_gradient():
    prior = small((3, 16, 16))
    styles, state = styles_of(prior, 7), list(prior.states(styles_of(prior, 7)))[2]
    upstream = torch.randn(7, 3, 16, 16, generator=make_generator(1))
    leaf = state.clone().requires_grad_()
    (whole,) = torch.autograd.grad(prior.decode_from(2, leaf, styles), leaf, upstream)
    parts = []
    for rows in torch.arange(7).split(3):
        part = state[rows].clone().requires_grad_()
        images = prior.decode_from(2, part, tuple(style[rows] for style in styles))
        parts.append(torch.autograd.grad(images, part, upstream[rows])[0])
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


def test_scales_are_those_of_samples_and_always_the_same():
    prior = small()
    styles, states = prior.scales()
    assert (styles, states) == prior.scales()
    drawn = prior.sample_styles(torch.arange(64) % 4, make_generator(0))
    assert states == pytest.approx([float(state.square().mean().sqrt()) for state in prior.states(drawn)])
    assert styles == pytest.approx(float(drawn[0].square().mean().sqrt()))


def test_sizes_that_are_made_at_once_change_nothing_but_memory(monkeypatch):
    prior, real = small((2, 8, 8), "vae", 4), make_real()
    labels = torch.arange(10) % 4
    scales, whole = prior.scales(), sample(prior, real, labels, make_generator(0))
    monkeypatch.setattr("dd_plugins.api.prior.PIXELS_AT_ONCE", 3 * 64)
    seen, begin = [], prior.begin
    prior.begin = lambda styles: seen.append(len(styles[0])) or begin(styles)
    styles, states = prior.scales()
    assert styles == scales[0]
    assert states == pytest.approx(scales[1], rel=1e-5)
    parts = sample(prior, real, labels, make_generator(0))
    assert parts.shape == whole.shape  # other noise: a chunk draws its own
    assert max(seen) == 3


def test_a_prior_without_classes_is_measured_by_what_it_makes_of_real_images():
    real = make_real(count=40)
    config = TrainConfig(epochs=30, lr=0.05, augmentation="none", batch_size=32)
    check_contract(Mirror())
    gates = measure(Mirror(), real, Factory(real), train=config)
    assert gates.failed() == ["all its states are of one size"]
    wanted = torch.tensor([2, 0, 2])
    images = sample(Mirror(), real, wanted, make_generator(3))
    for image, label in zip(images, wanted.tolist(), strict=True):
        rows = real.train.class_rows()[label]
        assert (real.train.images(rows) - image).abs().flatten(1).amax(1).min() < 1e-5
    assert not torch.equal(images[0], images[2])


class Broken(SmallGenerator):
    """Breaks what it is told to."""

    fault = ""

    def step(self, stage, state, styles):
        made = super().step(stage, state, styles)
        if self.fault == "random":
            made = made + torch.randn(made.shape)
        if self.fault == "coupled":
            made = made + made.mean(0, keepdim=True)
        if self.fault == "detached":
            made = made.detach() + 0 * state.sum()
        if self.fault == "uneven" and made.requires_grad:
            made.register_hook(lambda grad: grad * len(grad))  # the gradient depends on the batch, the image does not
        return made.double().requires_grad_(made.requires_grad) if self.fault == "double" and stage == 3 else made

    def to_pixels(self, state):
        pixels = super().to_pixels(state.float())
        return pixels + 1 if self.fault == "range" else pixels

    def sample_styles(self, labels, generator):
        found = super().sample_styles(labels, generator)
        return found[1:] if self.fault == "few" else found


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("random", "global random generator"),
        ("coupled", "depend on their batch"),
        ("double", "state 4: expected float32"),
        ("detached", "expected a gradient"),
        ("uneven", "gradients of single images"),
        ("range", "pixel values from 0 to 1"),
        ("few", "expected 4 tensors"),
        ("training", "evaluation mode"),
    ],
)
def test_what_breaks_the_contract_is_told(fault, told):
    prior = Broken(SmallConfig(image_shape=(2, 8, 8), num_classes=4, width=6)).eval().requires_grad_(False)
    prior.fault = fault
    if fault == "training":
        prior.train()
    with pytest.raises(PluginContractError, match=told):
        check_contract(prior)


def test_the_interface_needs_four_methods():
    with pytest.raises(TypeError, match="abstract"):
        LayeredGenerator()


# ---- training ------------------------------------------------------------------------------------------------------


def trainer(kind="gan", **recipe):
    return TRAINERS[kind](PriorRecipe(kind=kind, **{**TINY, **recipe}), make_real())


def weights(made):
    return torch.cat([value.flatten().double() for value in made.state_dict().values()])


@pytest.mark.parametrize("kind", ["gan", "vae"])
def test_training_is_seeded_and_leaves_the_global_generator_alone(kind):
    before = torch.get_rng_state()
    one, two, other = trainer(kind), trainer(kind), trainer(kind, seed=1)
    for made in (one, two, other):
        made.run()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights(one.exported), weights(two.exported))
    assert not torch.equal(weights(one.exported), weights(other.exported))


@pytest.mark.parametrize("kind", ["gan", "vae"])
@pytest.mark.parametrize("stopped", [1, 3])
def test_an_interrupted_training_goes_on_bit_by_bit(kind, stopped):
    whole, first, second = trainer(kind), trainer(kind), trainer(kind)
    whole.run()

    def leave(done):
        if done >= stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(leave)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    second.run()
    assert torch.equal(weights(whole.exported), weights(second.exported))
    assert torch.equal(weights(whole.networks), weights(second.networks))


def test_the_export_is_a_moving_average_that_forgets_its_random_start():
    made = trainer("vae", steps=4, average=0.25)
    averages, decays = [weights(made.model)], [2 / 11, 0.25, 0.25, 0.25]

    def follow(done):
        decay = decays[done - 1]
        averages.append(decay * averages[-1] + (1 - decay) * weights(made.model))
        torch.testing.assert_close(weights(made.exported), averages[-1])

    made.run(follow)
    assert len(averages) == 5


def test_a_short_training_exports_what_it_learned():
    made = trainer("vae", steps=30)  # the start's share of a plain average of decay 0.998: 0.94
    start = weights(made.model)
    made.run()
    moved = (weights(made.model) - start).norm()
    assert (weights(made.exported) - weights(made.model)).norm() < moved / 2


def test_what_is_trained_is_the_training_split_alone(monkeypatch):
    made = trainer("vae")
    seen = []
    whole = made.update
    monkeypatch.setattr(
        made, "update", lambda images, labels: (seen.append((images, labels)), whole(images, labels))[1]
    )
    made.run()
    train = made.real.spec.denormalize(made.real.train.images()).clamp(0, 1)
    for images, labels in seen:
        assert labels.tolist() == sorted(labels.tolist(), key=labels.tolist().index)  # classes in blocks
        for image, label in zip(images, labels, strict=True):
            near = (train - image).abs().flatten(1).amax(1)
            assert near.min() < 1e-6
            assert made.real.train.labels[near.argmin()] == label


def test_the_discriminator_sees_how_alike_the_images_of_a_class_are():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Discriminator(SmallConfig(image_shape=(2, 8, 8), num_classes=4, width=6), 2).eval()
    images, labels = torch.rand(4, 2, 8, 8, generator=make_generator(0)), torch.tensor([0, 0, 1, 1])
    alike = images.clone()
    alike[1] = alike[0]
    one, two = network(images, labels), network(alike, labels)
    assert not torch.isclose(one[0], two[0])  # the same image beside another one
    torch.testing.assert_close(one[2:], two[2:])  # and the other class does not notice


def test_an_auto_encoder_learns_its_images():
    made = trainer("vae", steps=300, width=16, noise=8, style=16, lr=3e-3, average=0.9)
    real = made.real
    images, labels = real.spec.denormalize(real.train.images()), real.train.labels
    prior = made.exported
    assert isinstance(prior, SmallAutoEncoder)

    def error():
        with torch.no_grad():
            return float((prior(prior.encode(images, labels)) - images).abs().mean())

    before = error()
    made.run()
    assert error() < 0.7 * before


# ---- gates ---------------------------------------------------------------------------------------------------------


class Copies(SmallGenerator):
    """Stands for a perfect prior, or a collapsed one: real images, or the first of each class."""

    def __init__(self, real, collapsed=False):
        super().__init__(SmallConfig(image_shape=real.spec.image_shape, num_classes=real.spec.num_classes, width=4))
        self.real, self.collapsed = real, collapsed

    def sample_styles(self, labels, generator):
        rows = self.real.train.class_rows()
        chosen = [
            rows[label][0 if self.collapsed else int(torch.randint(len(rows[label]), (), generator=generator))]
            for label in labels.tolist()
        ]
        return (torch.stack(chosen)[:, None],) * 4

    def begin(self, styles):
        return self.real.spec.denormalize(self.real.train.images(styles[0][:, 0]))

    def step(self, stage, state, styles):
        return state

    def to_pixels(self, state):
        return state


def measured(collapsed=False):
    real = make_real(count=40)
    config = TrainConfig(epochs=12, lr=0.05, augmentation="none", batch_size=32)
    return measure(Copies(real, collapsed), real, Factory(real), train=config)


def test_real_images_pass_and_collapse_does_not():
    good, bad = measured(), measured(collapsed=True)
    assert good.intra_class_diversity == pytest.approx(1, abs=0.1)
    assert good.accuracy > 0.8 * good.real_accuracy
    assert good.sizes == 1
    assert "all its states are of one size" in good.failed()
    assert bad.intra_class_diversity == 0
    assert any("intra-class diversity 0.00 is outside 0.7 to 1.3" in why for why in bad.failed())


def test_gates_tell_what_failed_with_figures():
    assert Gates(0.9, 1.0, 0.25, 1.0, 0.8, 4, 2).failed() == []
    told = "; ".join(Gates(0.5, 0.9, 0.25, 1.4, 0.2, 2, 1).failed())
    for part in (
        "0.500 is below 0.8 x 0.900",
        "1.40 is outside",
        "0.200 is below 0.75 x 0.900",
        "2 stages",
        "one size",
    ):
        assert part in told


def test_a_classifier_that_learned_nothing_lets_nothing_pass():
    assert Gates(0.1, 0.1, 0.1, 1.0, 0.1, 4, 2).failed() == [
        "the classifier that measures it reaches 0.100 on real images, where guessing gives 0.100"
    ]
    assert learned_nothing(0.52, 0.5)
    assert not learned_nothing(0.53, 0.5)
    assert not learned_nothing(0.06, 0.005)


def test_images_that_are_all_alike_are_refused_before_anything_is_trained(tmp_path):
    real = make_real(count=6)
    for rows in real.train.class_rows():
        real.train.pixels[real.train.index[rows]] = real.train.pixels[real.train.index[rows[0]]].clone()
    with pytest.raises(DataError, match="the images of each class are all alike"):
        find_prior(tmp_path, real, PriorRecipe(**TINY), NETWORK, Factory(real))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("prior", "sizes"), [(small((2, 8, 8)), 2), (small((1, 16, 16)), 3), (small((3, 8, 16)), 2)])
def test_sizes_of_states_are_counted(prior, sizes):
    assert _sizes(prior, torch.tensor([0])) == sizes


def test_deviation_within_classes_is_the_root_of_the_mean_variance():
    images, labels = torch.randn(12, 2, 3, 3, generator=make_generator(0)), torch.arange(12) % 3
    variances = [images[labels == label].var(0, unbiased=False).mean() for label in range(3)]
    assert within_class(images, labels) == pytest.approx(float(sum(variances) / 3) ** 0.5)


# ---- on disk -------------------------------------------------------------------------------------------------------


def find_prior(root, real, recipe, network, make_network, job=silent_job):
    return FolderArtifacts(root).get(TrainedPrior(real, recipe, network, make_network), job)


def prior_folder(root, real, recipe):
    return root / "priors" / TrainedPrior(real, recipe, NETWORK, None).key


def gates_of(stored, real, network, make_network, artifacts):
    return artifacts.get(MeasuredGates(stored, real, network, make_network))


def saved(path, kind="gan", shape=(2, 8, 8), classes=4):
    prior = small(shape, kind, classes)
    save_prior(path, prior, kind, prior.config, {"gates": Gates(0.9, 1.0, 0.25, 1.0, 0.8, 4, 2).to_dict()})
    return prior


@pytest.mark.parametrize("kind", ["gan", "vae"])
def test_a_prior_comes_back_from_its_files(kind, tmp_path):
    prior, real = saved(tmp_path, kind), make_real()
    found = load_prior(tmp_path, real.spec)
    assert torch.equal(found.generator(styles_of(prior)), prior(styles_of(prior)))
    assert not found.generator.training
    assert found.gates.accuracy == 0.9
    assert found.prior().sha256 == found.about["sha256"]
    assert found.prior().elements == sum(p.numel() for p in prior.parameters())
    check_contract(found.generator)


def cut(path):
    file = path / "prior.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def other_weights(path):
    file = path / "prior.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)


FIGURES = Gates(
    accuracy=0.9,
    real_accuracy=0.9,
    guessing=0.25,
    intra_class_diversity=1.0,
    classification_accuracy_score=0.9,
    stages=4,
    sizes=2,
)


def forget(path, **change):
    file = path / "prior.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, "its sha256 is"),
        (other_weights, "its sha256 is"),
        (lambda path: (path / "prior.safetensors").unlink(), "prior.safetensors"),
        (lambda path: (path / "prior.json").unlink(), "no prior there"),
        (lambda path: (path / "prior.json").write_text("{"), "no description of a prior"),
        (lambda path: forget(path, kind="code"), "no description of a prior"),
        (lambda path: forget(path, format=99), "format 99 is not 1"),
        (lambda path: forget(path, gates=[]), "no description of a prior"),
        (lambda path: forget(path, data=[]), "no description of a prior"),
        (lambda path: forget(path, seconds="x"), "no description of a prior"),
        (lambda path: forget(path, gates={**vars(FIGURES), "accuracy": "high"}), "no description of a prior"),
        (
            lambda path: forget(path, gates={**vars(FIGURES), "classification_accuracy_score": math.nan}),
            "no description of a prior",
        ),
        (lambda path: (path / "prior.json").write_text("[" * 100_000), "no description of a prior"),
        (lambda path: forget(path, config={"width": -1}), "no description of a prior"),
        (lambda path: forget(path, config={"image_shape": [2, 8, 8], "num_classes": 4, "width": 8}), "does not hold"),
    ],
)
def test_damaged_priors_are_refused_in_one_line(damage, told, tmp_path):
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=told) as caught:
        load_prior(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"classes": 5}, {"classes": 5, "shape": (2, 16, 16)}, {"shape": (1, 8, 8)}])
def test_priors_of_other_classes_or_sizes_are_refused(change, tmp_path):
    saved(tmp_path, **change)
    with pytest.raises(DataError, match="made-up has 4 classes and images of") as caught:
        load_prior(tmp_path, make_real().spec)
    assert ("parameterization.classes" in str(caught.value)) == (change == {"classes": 5})


def test_classes_of_one_image_are_refused_before_anything_is_trained(tmp_path):
    real = make_real()
    few = [rows[:1] for rows in real.train.class_rows()]
    train = Split(real.spec, real.train.pixels, real.train.labels[torch.cat(few)], real.train.index[torch.cat(few)])
    with pytest.raises(DataError, match="2 training images of every class; one has 1"):
        find_prior(tmp_path, replace(real, train=train), PriorRecipe(**TINY), NETWORK, Factory(real))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["prior.safetensors", "prior.json", "training.safetensors"])
def test_a_damaged_prior_of_its_own_is_told_with_what_to_remove(name, tmp_path):
    real = make_real()
    recipe = PriorRecipe(**TINY)
    path = prior_folder(tmp_path, real, recipe)
    if name == "training.safetensors":
        path.mkdir(parents=True)
    else:
        find_prior(tmp_path, real, recipe, NETWORK, Factory(real))
    (path / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match="remove") as caught:
        find_prior(tmp_path, real, recipe, NETWORK, Factory(real))
    assert "\n" not in str(caught.value)


def test_priors_of_other_data_are_refused(tmp_path):
    real = make_real()
    prior = small((2, 8, 8), "gan", 4)
    for fingerprint, told in ((real.spec.fingerprint, None), ("0123", "a prior of others with fingerprint 0123")):
        save_prior(tmp_path, prior, "gan", prior.config, {"data": {"name": "others", "fingerprint": fingerprint}})
        if told is None:
            load_prior(tmp_path, real.spec)
            continue
        with pytest.raises(DataError, match=told):
            load_prior(tmp_path, real.spec)


def test_gates_that_are_measured_for_a_prior_without_any_are_kept(tmp_path, monkeypatch):
    real, prior = make_real(), small((2, 8, 8), "gan", 4)
    save_prior(tmp_path / "prior", prior, "gan", prior.config, {})
    stored, measured = load_prior(tmp_path / "prior", real.spec), []
    good = Gates(0.9, 1.0, 0.25, 1.0, 0.8, 4, 2)
    monkeypatch.setattr(find, "measure", lambda *_: measured.append(1) or good)
    for _ in range(2):
        find.admit(stored, real, NETWORK, Factory(real), FolderArtifacts(tmp_path))
    assert len(measured) == 1
    (file,) = (tmp_path / "priors").glob("gates-*.json")
    damaged_or_older = ("{", "[]", '{"accuracy": NaN}', '{"accuracy": 0.9}')
    for times, content in enumerate(damaged_or_older, start=2):
        file.write_text(content)
        find.admit(stored, real, NETWORK, Factory(real), FolderArtifacts(tmp_path))
        assert len(measured) == times
        assert json.loads(file.read_text()) == good.to_dict()


def test_gates_of_a_file_that_is_older_than_one_of_them_are_measured(tmp_path, monkeypatch):
    real = make_real()
    saved(tmp_path)
    old = {name: figure for name, figure in FIGURES.to_dict().items() if name != "sizes"}
    forget(tmp_path, gates=old, network=NETWORK)
    monkeypatch.setattr(find, "measure", lambda *_: FIGURES)
    stored = load_prior(tmp_path, real.spec)
    assert stored.gates is None
    assert gates_of(stored, real, NETWORK, Factory(real), MemoryArtifacts()) == FIGURES


def test_gates_of_release_1_are_read():
    old = {"spread": 0.7, "worth": 0.8, "accuracy": 0.9, "real_accuracy": 0.9, "guessing": 0.1, "stages": 4, "sizes": 2}
    found = Gates.read(old)
    assert (found.intra_class_diversity, found.classification_accuracy_score) == (0.7, 0.8)
    assert Gates.read(found.to_dict()) == found


def test_figures_are_those_of_the_classes_that_are_meant(tmp_path, monkeypatch):
    real, prior = make_real(), small((2, 8, 8), "gan", 4)
    figures = {"gates": Gates(0.9, 1.0, 0.25, 1.0, 0.8, 4, 2).to_dict(), "network": NETWORK}
    save_prior(tmp_path / "prior", prior, "gan", prior.config, figures)
    measured = []
    monkeypatch.setattr(find, "measure", lambda made, *_: measured.append(made.classes.tolist()) or FIGURES)
    for classes in ([3, 2, 1, 0], [0, 1, 2, 3], [3, 2, 1, 0]):
        stored = load_prior(tmp_path / "prior", real.spec, classes=classes)
        gates_of(stored, real, NETWORK, Factory(real), FolderArtifacts(tmp_path))
    assert measured == [[3, 2, 1, 0], [0, 1, 2, 3]]


def test_who_waits_for_a_prior_can_be_interrupted(tmp_path):
    real, recipe = make_real(), PriorRecipe(**TINY)

    def wait():
        reporter = Reporter(Console(quiet=True))
        with reporter.stopping():
            threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
            find_prior(tmp_path, real, recipe, NETWORK, Factory(real), reporter.stoppable_job)

    with locked(prior_folder(tmp_path, real, recipe) / ".lock"), pytest.raises(KeyboardInterrupt):
        wait()


def test_figures_are_those_of_the_network_that_measured(tmp_path, monkeypatch):
    real, measured = make_real(), []
    good, weak = Gates(0.9, 1.0, 0.25, 1.0, 0.8, 4, 2), Gates(0.1, 1.0, 0.25, 1.0, 0.8, 4, 2)
    monkeypatch.setattr(find, "measure", lambda *_: measured.append(1) or good)
    stored = find_prior(tmp_path, real, PriorRecipe(**TINY), NETWORK, Factory(real))
    find.admit(stored, real, NETWORK, Factory(real), FolderArtifacts(tmp_path))
    assert len(measured) == 1
    monkeypatch.setattr(find, "measure", lambda *_: measured.append(1) or weak)
    wider = {**NETWORK, "width": 5}
    for _ in range(2):
        with pytest.raises(DataError, match="too weak"):
            find.admit(stored, real, wider, Factory(real, width=5), FolderArtifacts(tmp_path))
    assert len(measured) == 2
    find.admit(stored, real, NETWORK, Factory(real), FolderArtifacts(tmp_path))


def test_a_prior_that_another_process_trains_is_waited_for(tmp_path, monkeypatch):
    real, recipe = make_real(), PriorRecipe(**TINY)
    folder = prior_folder(tmp_path, real, recipe)
    monkeypatch.setattr(TRAINERS["gan"], "run", lambda *_: pytest.fail("trained a second time"))
    with ThreadPoolExecutor(1) as pool:
        with locked(folder / ".lock"):
            waiting = pool.submit(find_prior, tmp_path, real, recipe, NETWORK, Factory(real))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            prior = small(real.spec.image_shape, "gan", real.spec.num_classes)
            save_prior(folder, prior, "gan", prior.config, {})
        assert torch.equal(weights(waiting.result(timeout=30).generator), weights(prior))


def test_a_wrong_sha256_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(DataError, match="but 00 was expected"):
        load_prior(tmp_path, sha256="00")


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    prior = small()
    with torch.no_grad():
        prior.output.bias[0] = float("nan")
    save_prior(tmp_path, prior, "gan", prior.config, {})
    with pytest.raises(DataError, match="NaN"):
        load_prior(tmp_path)


def test_no_unpickling_is_reachable_from_what_loads_priors():
    reached, waiting = set(), ["dd_plugins.priors.find", "dd_plugins.priors.store", "dd_plugins.parameterizations.hpd"]
    while waiting:
        name = waiting.pop()
        spec = importlib.util.find_spec(name) if name.startswith("dd_plugins") else None
        if spec is None or name in reached:
            continue
        reached.add(name)
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"), name
                continue
            assert not {"pickle", "cloudpickle", "dill", "joblib"} & {module.split(".")[0] for module in found}, name
            waiting += [module for module in found if _is_module(module)]
    assert "dd_plugins.priors.small" in reached
    assert "dd_plugins.api.files" in reached


def _is_module(name):
    try:
        return name.startswith("dd_plugins") and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def torch_bytes(made):
    file = io.BytesIO()
    torch.save(made, file)
    return file.getvalue()


@pytest.mark.parametrize("write", [pickle.dumps, torch_bytes])
def test_nothing_is_ever_unpickled(write, tmp_path):
    """Weights that are a pickle, and whose sha256 is right."""
    saved(tmp_path)
    content = write({"weights": Payload(tmp_path / "mark")})
    (tmp_path / "prior.safetensors").write_bytes(content)
    forget(tmp_path, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(DataError, match="does not hold this prior"):
        load_prior(tmp_path)
    assert not (tmp_path / "mark").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()  # it would have been seen


@pytest.mark.parametrize("kind", ["gan", "vae"])
def test_the_first_interrupt_ends_a_training_between_two_updates_and_loses_none(kind, tmp_path, monkeypatch):
    real, recipe = make_real(), PriorRecipe(**TINY, kind=kind)
    whole = find_prior(tmp_path / "whole", real, recipe, NETWORK, Factory(real))
    update, done = TRAINERS[kind].update, []

    def interrupted(self, images, labels):
        done.append(self.step)
        if len(done) == 2:  # in the middle of an update, as it happens
            signal.raise_signal(signal.SIGINT)
        return update(self, images, labels)

    monkeypatch.setattr(TRAINERS[kind], "update", interrupted)
    reporter = Reporter(Console(quiet=True))
    with pytest.raises(KeyboardInterrupt), reporter.stopping():
        find_prior(tmp_path / "two", real, recipe, NETWORK, Factory(real), reporter.stoppable_job)
    with reporter.stopping():
        again = find_prior(tmp_path / "two", real, recipe, NETWORK, Factory(real), reporter.stoppable_job)
    assert done == list(range(recipe.steps))
    assert torch.equal(weights(whole.generator), weights(again.generator))


def test_gates_that_cannot_be_measured_cost_no_training(tmp_path, monkeypatch):
    real, recipe = make_real(), PriorRecipe(**TINY)
    with monkeypatch.context() as patch:
        patch.setattr(find, "measure", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            find_prior(tmp_path, real, recipe, NETWORK, Factory(real))
    monkeypatch.setattr(TRAINERS["gan"], "update", lambda *_: pytest.fail("trained again"))
    found = find_prior(tmp_path, real, recipe, NETWORK, Factory(real))
    assert found.gates is not None
    assert not list(tmp_path.rglob("training.safetensors"))


def test_an_interrupt_that_no_job_heard_is_not_lost():
    with pytest.raises(KeyboardInterrupt), Reporter(Console(quiet=True)).stopping():
        signal.raise_signal(signal.SIGINT)


def test_sizes_that_the_file_does_not_hold_are_not_allocated(tmp_path):
    saved(tmp_path)
    forget(tmp_path, config={"image_shape": [2, 8, 8], "num_classes": 4, "width": 10**6})  # terabytes
    with pytest.raises(DataError, match=r"does not hold this prior .*size mismatch"):
        load_prior(tmp_path)
