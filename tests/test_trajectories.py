"""Unrolled training against torch's SGD and autograd through all steps; experts against plain loops; their files."""

import copy
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from made_up import Factory, make_real
from safetensors.torch import load_file, safe_open, save_file
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from dd_plugins.api import DataError, FolderArtifacts, Split
from dd_plugins.augmentation import Augmentation
from dd_plugins.networks import build_network
from dd_plugins.seeds import make_generator
from dd_plugins.trajectories import (
    Batch,
    ExpertRecipe,
    ExpertTrajectories,
    FlatNetwork,
    flat_weights,
    pull_back,
    train_on,
)

SHAPE, CLASSES, IMAGES, LR = (2, 8, 8), 3, 6, 0.05
FULL = "color_crop_cutout_flip_scale_rotate"
NETWORK = {"name": "convnet", "width": 4, "depth": 2}
MOMENTA = [0.0, 0.9]


def make_network(dtype=torch.float64, seed=0):
    return build_network("convnet", SHAPE, CLASSES, {"width": 4, "depth": 2}, seed=seed).to(dtype)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=make_generator(seed), dtype=torch.float64).to(dtype)


def make_batches(steps, strategy=FULL, seed=0):
    """Some images several times in a batch, some in none; every step with an augmentation of its own."""
    generator, augmentation = make_generator(seed), Augmentation.dsa(strategy)
    labels, batches = torch.arange(IMAGES) % CLASSES, []
    for _ in range(steps):
        rows = torch.randint(IMAGES, (5,), generator=generator)
        batches.append(Batch(rows, labels[rows], partial(augmentation, draw=augmentation.draw(5, generator))))
    return batches


def unrolled(network, start, images, batches, lr, momentum, goal, detached=False):
    """Autograd through all steps; ``detached``: TESLA, where each gradient takes the weights before it for constant."""
    images, lr = images.clone().requires_grad_(), torch.tensor(lr, dtype=start.dtype, requires_grad=True)
    module = copy.deepcopy(network)
    vector_to_parameters(start, module.parameters())
    weights = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in weights.items()}
    for batch in batches:
        here = {name: p.detach().requires_grad_() for name, p in weights.items()} if detached else weights
        logits = torch.func.functional_call(module, here, (batch.augment(images[batch.rows]),))
        losses = functional.log_softmax(logits, 1)[torch.arange(len(logits)), batch.targets]
        gradients = torch.autograd.grad(-losses.mean(), list(here.values()), create_graph=True)
        # TESLA holds the sum of gradients constant for the learning rate, which the detached weights bring about.
        velocity = {n: momentum * velocity[n] + g for n, g in zip(weights, gradients, strict=True)}
        weights = {name: p - lr * velocity[name] for name, p in weights.items()}
    last = torch.cat([p.flatten() for p in weights.values()])
    loss = (last - goal).square().sum()
    return last.detach(), *torch.autograd.grad(loss, (images, lr))


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def pulled(network, start, images, batches, lr, momentum, goal, **options):
    flat = FlatNetwork(network)
    trajectory = train_on(flat, start, images, batches, lr, momentum)
    return pull_back(flat, trajectory, images, batches, 2 * (trajectory.last - goal), **options)


# ------------------------------------------------------------------------------------------------------- unrolling


def test_a_flat_network_is_the_network():
    network, images = make_network(), noise(4, *SHAPE)
    flat = FlatNetwork(network)
    weights = flat.weights()
    assert torch.equal(weights, parameters_to_vector(network.parameters()))
    assert flat.sizes == [p.numel() for p in network.parameters()]
    assert not weights.requires_grad
    torch.testing.assert_close(flat(weights, images), network(images))
    other = make_network(seed=1)
    torch.testing.assert_close(flat(flat_weights(other), images), other(images))
    weights += 1  # a copy
    assert not torch.equal(weights, flat_weights(network))


@pytest.mark.parametrize("momentum", MOMENTA)
def test_training_is_torchs_sgd(momentum):
    network, images, batches = make_network(), noise(IMAGES, *SHAPE, seed=1), make_batches(6)
    start, before = flat_weights(make_network(seed=5)), flat_weights(network)
    given = images.clone()
    trajectory = train_on(FlatNetwork(network), start, images, batches, LR, momentum)
    module = make_network(seed=5)
    optimizer, expected = torch.optim.SGD(module.parameters(), LR, momentum), [flat_weights(module)]
    for batch in batches:
        optimizer.zero_grad()
        functional.cross_entropy(module(batch.augment(images[batch.rows])), batch.targets).backward()
        optimizer.step()
        expected.append(flat_weights(module))
    torch.testing.assert_close(torch.stack(trajectory.thetas), torch.stack(expected), rtol=1e-12, atol=1e-13)
    assert trajectory.last is trajectory.thetas[-1]
    assert not trajectory.last.requires_grad
    assert (trajectory.lr, trajectory.momentum) == (LR, momentum)
    assert torch.equal(flat_weights(network), before)
    assert torch.equal(images, given)


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("strategy", ["none", FULL])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_gradient_is_autograds_through_all_steps(dtype, most, strategy, momentum):
    network, start = make_network(dtype), flat_weights(make_network(dtype, seed=3))
    images, goal = noise(IMAGES, *SHAPE, seed=1, dtype=dtype), start + 0.3 * noise(len(start), seed=2, dtype=dtype)
    for steps in (1, 2, 6):
        batches = make_batches(steps, strategy)
        _, image_grad, lr_grad = unrolled(network, start, images, batches, LR, momentum, goal)
        found = pulled(network, start, images, batches, LR, momentum, goal)
        assert [t.dtype for t in found] == [dtype, dtype]
        assert not any(t.requires_grad for t in found)
        assert relative(found[0], image_grad) < most
        assert relative(found[1], lr_grad) < most


def test_images_that_were_in_no_batch_have_no_gradient():
    network, images = make_network(), noise(IMAGES, *SHAPE, seed=1)
    rows = torch.tensor([0, 2, 2])
    batches = [Batch(rows, rows % CLASSES, lambda x: x)] * 3
    start = flat_weights(network)
    image_grad, _ = pulled(network, start, images, batches, LR, 0.9, start + 1)
    drawn = image_grad.flatten(1).norm(dim=1) > 0
    assert drawn.tolist() == [True, False, True, False, False, False]


@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_truncated_gradient_is_teslas(momentum):
    network, start = make_network(), flat_weights(make_network(seed=3))
    images, goal = noise(IMAGES, *SHAPE, seed=1), start + 0.3 * noise(len(start), seed=2)
    for steps in (1, 6):
        batches = make_batches(steps)
        arguments = (network, start, images, batches, LR, momentum, goal)
        _, image_grad, lr_grad = unrolled(*arguments, detached=True)
        found, exact = pulled(*arguments, truncated=True), pulled(*arguments)
        assert relative(found[0], image_grad) < 1e-10
        assert relative(found[1], lr_grad) < 1e-10
        if steps == 1:
            assert torch.equal(found[0], exact[0])
            assert torch.equal(found[1], exact[1])
        else:
            assert relative(found[0], exact[0]) > 1e-3
            assert relative(found[1], exact[1]) > 1e-3


class Saved:
    """A tensor that a graph keeps, counted as long as it lives."""

    live = peak = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Saved.live += tensor.numel()
        Saved.peak = max(Saved.peak, Saved.live)

    def __del__(self):
        Saved.live -= self.tensor.numel()

    def unpack(self):
        return self.tensor


def peak_of(work):
    Saved.live = Saved.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, Saved.unpack):
        work()
    assert Saved.live == 0
    return Saved.peak


@pytest.mark.parametrize("truncated", [False, True])
def test_memory_does_not_grow_with_the_steps(truncated):
    network, images = make_network(), noise(IMAGES, *SHAPE, seed=1)
    start = flat_weights(network)

    def whole(steps):
        return lambda: unrolled(network, start, images, make_batches(steps, "none"), LR, 0.9, start + 1)

    def constant(steps):
        batches = make_batches(steps, "none")
        return lambda: pulled(network, start, images, batches, LR, 0.9, start + 1, truncated=truncated)

    assert peak_of(whole(8)) > 3 * peak_of(whole(2))  # so much for the counter
    assert 0 < peak_of(constant(8)) == peak_of(constant(2))


# ---------------------------------------------------------------------------------------------------------- experts


EPOCHS, BATCH = 3, 16


class Interrupted(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Watched(Split):
    """Remembers which rows were asked for."""

    asked: list = dataclasses.field(default_factory=list)

    def images(self, rows=None):
        self.asked.append(rows)
        return super().images(rows)


@pytest.fixture(scope="module")
def real():
    return make_real(CLASSES, SHAPE)


class InGroups(ExpertTrajectories):
    """Trains as many at once as is asked for."""

    at_once = None

    def _at_once(self, missing):
        return self.at_once or super()._at_once(missing)


class Store:
    """The experts of one recipe in a folder."""

    def __init__(self, root, real, recipe, factory):
        self.real, self.recipe, self.factory, self.artifacts = real, recipe, factory, FolderArtifacts(root)
        self.size = sum(p.numel() for p in make_network().parameters())
        self.path = root / "experts" / self.needed(1).key

    def needed(self, count, strategy="auto"):
        return InGroups(self.real, self.recipe, self.factory, count, self.size, strategy)

    def train(self, count, at_once=None, on_epoch=lambda done: None, strategy="auto"):
        needed = self.needed(count, strategy)
        needed.at_once = at_once
        return self.artifacts.get(needed, lambda name, total: nullcontext(on_epoch))

    @property
    def experts(self):
        needed = self.needed(1)
        return needed.experts(self.artifacts.files(needed))

    def missing(self, *words):
        return self.experts.missing(*words)

    def pair(self, *words):
        return self.experts.pair(*words)

    def file(self, number):
        return self.path / f"expert-{number:04d}.safetensors"


def make_store(root, real, factory=None, **recipe):
    recipe = {"network": NETWORK, "epochs": EPOCHS, "lr": 0.05, "batch_size": BATCH, **recipe}
    return Store(root, real, ExpertRecipe(**recipe), factory or Factory(real))


def stored(store, number):
    return load_file(store.file(number))["weights"]


def all_of(store, count=3):
    return torch.stack([stored(store, number) for number in range(count)])


@pytest.fixture(scope="module")
def trained(real, tmp_path_factory):
    """Three experts, one after the other."""
    store = make_store(tmp_path_factory.mktemp("experts"), real)
    store.train(3)
    return store


@pytest.mark.parametrize(
    ("at_once", "strategy"), [(2, "sequential"), (3, "stacked"), (3, "side-by-side"), (99, "auto")]
)
def test_an_expert_is_the_same_whoever_is_trained_beside_it(at_once, strategy, trained, real, tmp_path):
    store = make_store(tmp_path, real)
    store.train(3, at_once, strategy=strategy)
    expected = all_of(trained)
    torch.testing.assert_close(all_of(store), expected, rtol=1e-4, atol=1e-6)
    assert len({tuple(weights[0].tolist()) for weights in expected}) == 3  # none of them like another
    steps = (expected[:, 1:] - expected[:, :-1]).norm(dim=2)
    assert (steps > 1e-2).all()  # or the tolerance would hide everything
    store.file(1).unlink()
    assert store.missing(4) == [1, 3]
    store.train(3)  # alone
    torch.testing.assert_close(stored(store, 1), expected[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("at_once", "stops"), [(1, (1,)), (1, (3, 2)), (1, (5, 1, 1)), (2, (2,)), (2, (4, 2)), (2, (6,))]
)
def test_interrupted_training_goes_on_bit_by_bit(at_once, stops, trained, real, tmp_path):
    store, begun, left = make_store(tmp_path, real), [], 3 * EPOCHS
    for stop in stops:

        def stopping(done, stop=stop):
            if done >= stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            store.train(3, at_once, stopping, "sequential")
        left -= stop
    store = make_store(tmp_path, real)
    store.train(3, at_once, begun.append, "sequential")
    assert torch.equal(all_of(store), all_of(trained))
    assert begun[-1] == left  # nothing was trained twice
    assert sorted(file.name for file in store.path.iterdir()) == [
        ".lock",
        *(f"expert-000{k}.safetensors" for k in range(3)),
        "experts.json",
    ]


def test_what_was_left_of_other_experts_is_not_taken_for_these(trained, real, tmp_path):
    store = make_store(tmp_path, real)

    def stopping(done):
        raise Interrupted

    with pytest.raises(Interrupted):
        store.train(2, 2, stopping, "sequential")  # experts 0 and 1, given up after an epoch ...
    store.train(2, 1)  # ... and then trained one by one
    store.file(0).unlink()
    store.train(3, 2, strategy="sequential")  # experts 0 and 2
    assert torch.equal(all_of(store), all_of(trained))


def test_the_first_snapshot_is_the_initialisation(real, tmp_path):
    factory = Factory(real)
    store = make_store(tmp_path, real, factory)
    store.train(2)
    for number, (network, born) in enumerate(factory.born):
        weights = torch.cat([born[name].flatten() for name, _ in network.named_parameters()])
        start, last = store.pair(number, 0, EPOCHS)
        assert torch.equal(start, weights)
        assert torch.equal(last, flat_weights(network))
        assert stored(store, number).shape == (EPOCHS + 1, len(weights))


def test_snapshots_are_those_of_plain_sgd(real, tmp_path):
    watched = Watched(**{field.name: getattr(real.train, field.name) for field in dataclasses.fields(Split)})
    factory = Factory(real)
    store = make_store(tmp_path, dataclasses.replace(real, train=watched), factory, strategy="none", lr=0.02)
    store.train(1)
    count, rows = len(real.train), torch.cat(watched.asked).view(EPOCHS, -1)
    assert rows.sort(1).values.tolist() == [list(range(count))] * EPOCHS  # each image once an epoch
    assert len({tuple(order.tolist()) for order in rows}) == EPOCHS
    network = make_network(torch.float32)
    network.load_state_dict(factory.born[0][1])
    for epoch, order in enumerate(rows, 1):
        for batch in order.split(BATCH):
            loss = functional.cross_entropy(network(real.train.images()[batch]), real.train.labels[batch])
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter -= 0.02 * gradient
        torch.testing.assert_close(store.pair(0, 0, epoch)[1], flat_weights(network), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        hits = network(real.validation.images()).argmax(1) == real.validation.labels
    with safe_open(store.file(0), framework="pt") as file:
        assert float(file.metadata()["validation_accuracy"]) == pytest.approx(float(hits.float().mean()), abs=1e-4)


def test_experts_are_augmented_unless_told_otherwise(trained, real, tmp_path):
    weights = []
    for strategy in (FULL, "none", "crop"):
        store = make_store(tmp_path, real, strategy=strategy)
        store.train(1)
        weights.append(stored(store, 0))
    assert torch.equal(weights[0], stored(trained, 0))  # the field's strategy for what may be mirrored
    assert relative(weights[1], weights[0]) > 1e-3
    assert relative(weights[2], weights[0]) > 1e-3
    assert torch.equal(weights[1][0], weights[0][0])


def test_pairs_are_rows_of_the_file(trained):
    for number, epoch, later in ((0, 0, 1), (2, 1, 3), (1, 2, 2)):
        found = trained.pair(number, epoch, later)
        assert torch.equal(torch.stack(found), stored(trained, number)[[epoch, later]])


def test_equal_recipes_share_experts_and_others_do_not(trained, real, tmp_path):
    root = trained.path.parent.parent
    again = make_store(root, real)
    assert again.path == trained.path
    assert again.missing(4) == [3]
    about = json.loads((again.path / "experts.json").read_text())
    assert about["recipe"] == again.recipe.model_dump(mode="json")
    assert about["data"]["fingerprint"] == real.spec.fingerprint
    changes = (
        {"epochs": 4},
        {"lr": 0.06},
        {"batch_size": 17},
        {"strategy": "none"},
        {"network": {**NETWORK, "width": 5}},
        {"network": {"name": "vgg11"}},
    )
    others = [make_store(root, real, **change) for change in changes]
    fewer = make_real(CLASSES, SHAPE, 19)
    assert fewer.spec.name == real.spec.name  # the pixels alone are different
    others.append(make_store(root, fewer))
    assert len({store.path for store in [trained, *others]}) == len(changes) + 2
    assert all(store.missing(2) == [0, 1] for store in others)


def test_a_complete_store_trains_nothing(trained, real):
    factory, before = Factory(real), {p: p.stat().st_mtime_ns for p in trained.path.glob("*.safetensors")}
    calls = []
    make_store(trained.path.parent.parent, real, factory).train(3, 2, calls.append)
    assert (calls, factory.born) == ([], [])
    assert before == {p: p.stat().st_mtime_ns for p in trained.path.glob("*.safetensors")}


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES = {
    "cut": cut,
    "header alone": lambda file: file.write_bytes(file.read_bytes()[:20]),
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no safetensors at all, but long enough to look"),
    "gone": lambda file: file.unlink(),
    "foreign": lambda file: save_file({"other": torch.zeros(2)}, file),
    "short": lambda file: save_file({"weights": torch.zeros(2, 5)}, file),
    "flat": lambda file: save_file({"weights": torch.zeros(5)}, file),
    "whole numbers": lambda file: save_file({"weights": torch.zeros(3, 5, dtype=torch.int64)}, file),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_file_is_named(damage, real, tmp_path):
    store = make_store(tmp_path, real, epochs=2)
    store.train(2)
    DAMAGES[damage](store.file(1))
    with pytest.raises(DataError, match="damaged") as caught:
        store.pair(1, 0, 2)
    assert str(store.file(1)) in str(caught.value)
    assert "\n" not in str(caught.value)
    if damage == "gone":
        assert store.missing(2) == [1]
    else:
        with pytest.raises(DataError, match="damaged"):
            store.missing(2)
    store.pair(0, 0, 2)
    store.file(1).unlink(missing_ok=True)
    store.train(2)  # as the message says
    store.pair(1, 0, 2)


def test_weights_that_are_not_finite_or_of_another_network_are_named(real, tmp_path):
    store = make_store(tmp_path, real, epochs=2)
    store.train(1)
    size = stored(store, 0).shape[1]
    assert store.missing(1, size) == []
    with pytest.raises(DataError, match=rf"{store.file(0).name}: {size:,} weights of a network that has 7"):
        store.missing(1, 7)
    weights = stored(store, 0)
    weights[2, 3] = torch.nan
    save_file({"weights": weights}, store.file(0))
    with pytest.raises(DataError, match=rf"{store.file(0).name}: NaN or infinite weights"):
        store.pair(0, 0, 2)


@pytest.mark.parametrize("stranger", ["network", "data set", "recipe"])
def test_experts_of_another_network_data_set_or_recipe_are_refused(stranger, real, tmp_path):
    store = make_store(tmp_path, real, epochs=2)
    store.train(1)
    others = {"network": {"network": {"name": "convnet", "width": 5}}, "data set": {}, "recipe": {"lr": 0.02}}
    data = make_real(shape=(2, 8, 8), count=21) if stranger == "data set" else real
    other = make_store(tmp_path, data, epochs=2, **others[stranger])
    other.train(1)
    assert other.path != store.path
    store.file(0).write_bytes(other.file(0).read_bytes())
    with pytest.raises(DataError, match=f"belongs to {other.path.name}; remove it") as caught:
        store.pair(0, 0, 2)
    assert str(store.file(0)) in str(caught.value)


def test_training_experts_leaves_the_global_generator_alone(real, tmp_path):
    before = torch.get_rng_state()
    make_store(tmp_path, real, epochs=1).train(2, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_two_that_need_the_same_experts_train_each_once(trained, real, tmp_path):
    epochs = []

    def work(_):
        store = make_store(tmp_path, real)
        store.train(3, 1, epochs.append, "sequential")
        return all_of(store)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(work, range(2))
    assert torch.equal(one, all_of(trained))
    assert torch.equal(other, one)
    assert sum(done > 0 for done in epochs) == 3 * EPOCHS  # 0: another thread is waited for
