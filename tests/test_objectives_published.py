"""DM, CAFE, MTT, BPTT and HaBa's matching against naive formulas and plain unrolling; their loops and their state."""

import copy
import dataclasses
from contextlib import contextmanager

import pytest
import torch
from made_up import Factory, drive, make_real
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import dd_plugins.matching.features
import dd_plugins.objectives.bptt
import dd_plugins.objectives.cafe
import dd_plugins.trajectories.matching
from dd_plugins.api import (
    Context,
    FolderArtifacts,
    IncompatibleError,
    MemoryArtifacts,
    Network,
    NotEnoughMemory,
    Split,
    UsageError,
    read_tensors,
    write_tensors,
)
from dd_plugins.augmentation import Draw
from dd_plugins.matching import class_means, embed_in_chunks
from dd_plugins.networks import build_network
from dd_plugins.objectives.bptt import BPTT
from dd_plugins.objectives.cafe import CAFE, Window
from dd_plugins.objectives.dm import DM
from dd_plugins.objectives.haba import HaBaMatching, supervised_contrast
from dd_plugins.objectives.mtt import MTT
from dd_plugins.seeds import make_generator

CLASSES, SHAPE = 4, (2, 8, 8)
FULL = "color_crop_cutout_flip_scale_rotate"
NETWORK = {"name": "convnet", "width": 4, "depth": 2}
EXPERTS = {"experts": 2, "training_epochs": 3, "training_lr": 0.05, "training_batch": 16}
TRAJECTORY = {**EXPERTS, "syn_steps": 3, "expert_epochs": 1, "max_start_epoch": 3, "start_lr": 0.05, "lr_lr": 1e-3}
SMALL_CAFE = {"batch_real": 5, "probe": 3, "batch_train": 10, "strategy": FULL}
CASES = {
    "dm": (DM, {"batch_real": 5}),
    "cafe": (CAFE, {**SMALL_CAFE, "inner_range": 1e-9, "max_outer": 3, "max_inner": 11}),
    "cafe fixed": (CAFE, {**SMALL_CAFE, "loops": "fixed", "outer": 3, "inner": 2}),
    "mtt": (MTT, {**TRAJECTORY, "batch_syn": 8}),
    "tesla": (MTT, {**TRAJECTORY, "gradient": "tesla"}),
    "bptt": (BPTT, {"unroll": 3, "batch_syn": 3, "batch_real": 5, "strategy": FULL}),
    "haba": (HaBaMatching, TRAJECTORY),
}


@pytest.fixture(scope="module")
def real():
    return make_real(CLASSES, SHAPE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def targets_of(count):
    return torch.arange(CLASSES).repeat_interleave(count)


def make(kind, real, cache, count=4, seed=0, factory=None, settings=None, targets=None, groups=None, **context):
    """An objective at work; for HaBa every second image is of another hallucinator."""
    objective_class, config = CASES[kind]
    objective = objective_class(real.spec, {**config, **(settings or {})})
    targets = targets_of(count) if targets is None else targets
    if kind == "haba" and groups is None:
        groups = torch.arange(len(targets)) % 2
    factory = factory or Factory(real)
    given = {
        "artifacts": None if cache is None else FolderArtifacts(cache),
        "groups": groups,
        "network": NETWORK,
        **context,
    }
    objective.prepare(real, targets, Context(factory, make_generator(seed), 10, torch.device("cpu"), **given))
    return objective


def start(objective, seed=3):
    return torch.randn(len(objective.targets), *SHAPE, generator=make_generator(seed))


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# --------------------------------------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("kind", list(CASES))
def test_matches_have_shapes_and_change_nothing_else(kind, real, cache):
    objective = make(kind, real, cache, settings={"batch_syn": None} if kind == "mtt" else None)
    before = [t.clone() for t in (real.train.pixels, real.train.labels, torch.get_rng_state())]
    for step in range(4):
        images, targets = start(objective, step), objective.targets
        given = images.clone()
        match = objective.match(images, targets, step)
        assert match.loss.shape == ()
        assert match.image_grad.shape == images.shape
        assert match.loss > 0
        assert torch.isfinite(match.image_grad).all()
        if kind != "bptt":  # where images are drawn
            assert (match.image_grad.flatten(1).norm(dim=1) > 0).all()  # every image is pulled
        assert [t.requires_grad for t in (match.loss, match.image_grad)] == [False, False]
        assert torch.equal(images, given)
    behind = (real.train.pixels, real.train.labels, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, behind, strict=True))


@pytest.mark.parametrize("kind", list(CASES))
def test_resuming_is_bit_identical(kind, real, cache, tmp_path):
    whole = make(kind, real, cache)
    images = start(whole)
    expected = drive(whole, images, range(5))
    for saved_at in (0, 2, 3):
        first = make(kind, real, cache)
        resumed = start(first)
        drive(first, resumed, range(saved_at))
        write_tensors(tmp_path / "state", first.state_dict(), {})  # through a file: tensors alone
        second = make(kind, real, cache, seed=99)
        second.load_state_dict(read_tensors(tmp_path / "state")[0])
        for match, other in zip(expected[saved_at:], drive(second, resumed, range(saved_at, 5)), strict=True):
            assert torch.equal(match.image_grad, other.image_grad)
            assert torch.equal(match.loss, other.loss)
        assert torch.equal(images, resumed)
        assert second.learned() == whole.learned()
    assert not torch.equal(expected[0].image_grad, expected[1].image_grad)


@pytest.mark.parametrize("kind", list(CASES))
def test_a_state_can_be_loaded_twice(kind, real, cache):
    objective = make(kind, real, cache)
    drive(objective, start(objective), range(2))
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    runs = []
    for _ in range(2):
        again = make(kind, real, cache)
        again.load_state_dict(state)
        runs.append(drive(again, start(again), range(2, 5)))
    assert all(torch.equal(a.image_grad, b.image_grad) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("kind", ["dm", "cafe fixed"])
def test_gradients_follow_their_images(kind, real, cache):
    results = []
    for order in (torch.arange(16), torch.randperm(16, generator=make_generator(5))):
        objective = make(kind, real, cache, targets=targets_of(4)[order])
        match = objective.match(start(objective)[order], objective.targets, 0)
        results.append((match.loss, match.image_grad[torch.argsort(order)]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------- float64, and what was drawn on the way


@dataclasses.dataclass(frozen=True)
class Watched(Split):
    """Images in float64; remembers what was drawn and which rows were asked for."""

    drawn: list = dataclasses.field(default_factory=list)
    asked: list = dataclasses.field(default_factory=list)

    def images(self, rows=None):
        self.asked.append(rows)
        return super().images(rows).double()

    def per_class(self, count, generator):
        self.drawn.append(super().per_class(count, generator))
        return self.drawn[-1]


class Doubles(Factory):
    def __call__(self, seed):
        return super().__call__(seed).double()

    def newest(self):
        """The youngest network as it was born."""
        network, weights = self.born[-1]
        network = copy.deepcopy(network)
        network.load_state_dict(weights)
        return network


@pytest.fixture
def watched(real):
    def wrap(split):
        return Watched(**{field.name: getattr(split, field.name) for field in dataclasses.fields(Split)})

    return dataclasses.replace(real, train=wrap(real.train), validation=wrap(real.validation))


@pytest.fixture(scope="module")
def exact_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("exact")


def make_exact(kind, watched, exact_cache, *args, **options):
    """An objective in float64, the images it begins with, its factory and the augmentations that it draws."""
    factory = Doubles(watched)
    objective = make(kind, watched, exact_cache, *args, factory=factory, **options)
    draws, draw = [], objective.augmentation.draw
    objective.augmentation.draw = lambda *given, **named: (draws.append(draw(*given, **named)), draws[-1])[1]
    return objective, start(objective).double(), factory, draws


def cross_entropy(logits, targets):
    return -functional.log_softmax(logits, 1)[torch.arange(len(logits)), targets]


def real_images(real, rows):
    return real.spec.normalize(real.train.pixels[real.train.index[rows]]).double()


def unrolled(network, weights, images, batches, lr, momentum=0.0, detached=False):
    """The last weights as a function of ``images`` and ``lr``; ``detached``: of each step's gradient alone (TESLA)."""
    velocity = {name: torch.zeros_like(value) for name, value in weights.items()}
    for rows, targets, augment in batches:
        here = {name: p.detach().requires_grad_() for name, p in weights.items()} if detached else weights
        loss = cross_entropy(torch.func.functional_call(network, here, (augment(images[rows]),)), targets).mean()
        gradients = torch.autograd.grad(loss, list(here.values()), create_graph=True)
        velocity = {n: momentum * velocity[n] + g for n, g in zip(weights, gradients, strict=True)}
        weights = {name: value - lr * velocity[name] for name, value in weights.items()}
    return weights


def named(network, flat):
    """A vector of weights as named tensors that require gradients."""
    sizes = {name: p.shape for name, p in network.named_parameters()}
    parts = torch.split(flat, [shape.numel() for shape in sizes.values()])
    return {n: part.view(sizes[n]).clone().requires_grad_() for n, part in zip(sizes, parts, strict=True)}


def flattened(weights):
    return torch.cat([value.flatten() for value in weights.values()])


def features_of(network, images):
    """What reaches the classifier."""
    seen = []
    handle = network.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(images)
    handle.remove()
    return seen[0]


@contextmanager
def watching_training(monkeypatch, module):
    """The arguments of every training on synthetic images."""
    calls, train_on = [], module.train_on
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_on", lambda *args: (calls.append(args), train_on(*args))[1])
        yield calls


# ---------------------------------------------------------------------------------------------------------------- MTT


def naive_trajectory(call, goal, detached=False):
    """Loss, image gradient and learning-rate gradient of what `train_on` was called with."""
    flat_network, begin, images, batches, lr = call
    network = build_network("convnet", SHAPE, CLASSES, {"width": 4, "depth": 2}, seed=1).double()
    assert [p.shape for p in network.parameters()] == flat_network.shapes
    images, lr = images.clone().requires_grad_(), torch.tensor(lr, dtype=torch.float64, requires_grad=True)
    plain = [(batch.rows, batch.targets, batch.augment) for batch in batches]
    last = flattened(unrolled(network, named(network, begin), images, plain, lr, detached=detached))
    loss = ((last - goal) ** 2).sum() / ((begin - goal) ** 2).sum()
    return loss.detach(), *torch.autograd.grad(loss, (images, lr))


def watch_pairs(objective):
    """What the store was asked for, and what it gave."""
    pairs, pair = [], objective.experts.pair
    objective.experts.pair = lambda *args: (pairs.append((args, pair(*args))), pairs[-1][1])[1]
    return pairs


@pytest.mark.parametrize("kind", ["mtt", "tesla"])
@pytest.mark.parametrize("batch", [None, 5])
def test_mtt_is_plain_unrolling(kind, batch, watched, exact_cache, monkeypatch):
    settings = {"syn_steps": 5, "batch_syn": batch, "lr_momentum": 0.5}
    objective, images, _, draws = make_exact(kind, watched, exact_cache, settings=settings)
    pairs, lr = watch_pairs(objective), torch.nn.Parameter(torch.tensor(0.05, dtype=torch.float64))
    optimizer = torch.optim.SGD([lr], lr=1e-3, momentum=0.5)
    with watching_training(monkeypatch, dd_plugins.trajectories.matching) as calls:
        for step in range(3):
            assert objective.learned() == {"lr": pytest.approx(lr.item(), rel=1e-9)}
            match = objective.match(images, objective.targets, step)
            (number, epoch, later), (begin, goal) = pairs[-1]
            weights = load_file(objective.experts.place(number))["weights"]
            assert torch.equal(torch.stack([begin, goal]), weights[[epoch, later]])
            assert torch.equal(calls[-1][1], begin)
            assert torch.equal(calls[-1][2], images)
            assert len(calls[-1][3]) == 5
            assert all(torch.equal(batch.targets, objective.targets[batch.rows]) for batch in calls[-1][3])
            loss, image_grad, lr.grad = naive_trajectory(calls[-1], goal, kind == "tesla")
            assert float(match.loss) == pytest.approx(loss.item(), rel=1e-10)
            assert relative(match.image_grad, image_grad) < 1e-10
            optimizer.step()
    assert len(draws) == 3 * 5  # anew every step
    assert all(len(draw) == len(b.rows) for draw, b in zip(draws, [b for call in calls for b in call[3]], strict=True))
    assert len({draw.noise.sum().item() for draw in draws}) == 3 * 5
    assert lr.item() != pytest.approx(0.05, rel=1e-3)  # it has learned something


def test_mtt_augments_each_image_on_its_own_with_one_operation_a_step(watched, exact_cache, monkeypatch):
    objective, images, _, draws = make_exact("mtt", watched, exact_cache, settings={"syn_steps": 20})
    with watching_training(monkeypatch, dd_plugins.trajectories.matching) as calls:
        objective.match(images, objective.targets, 0)
    for batch, draw in zip(calls[0][3], draws, strict=True):
        expected = objective.augmentation(images[batch.rows], draw)
        for _ in range(2):  # on the way there and on the way back
            assert torch.equal(batch.augment(images[batch.rows]), expected)
        assert len(draw.choice.unique()) == 1
        assert len(draw.noise.unique(dim=0)) == len(batch.rows)
    assert len({int(draw.choice[0]) for draw in draws}) > 3


@pytest.mark.parametrize("kind", ["mtt", "tesla", "haba"])
def test_without_a_learning_rate_the_loss_is_one(kind, real, cache):
    objective = make(kind, real, cache, settings={"adversarial_weight": 0} if kind == "haba" else None)
    for step in range(3):
        objective.lr = 0.0
        match = objective.match(start(objective), objective.targets, step)
        assert float(match.loss) == 1
        assert not match.image_grad.any()


def test_learning_rates_stop_at_their_floor_or_not_at_all(real, cache):
    for sign in (1, -1):
        for floor in (None, 0.01):
            objective = make("mtt", real, cache, settings={"lr_floor": floor})
            objective._learn_lr(1e9 * sign)  # stands for a gradient that would take it anywhere
            expected = 0.05 - 1e-3 * 1e9 * sign
            assert objective.lr == pytest.approx(expected if floor is None else max(expected, floor))
    objective = make("mtt", real, cache, settings={"lr_lr": 0})
    drive(objective, start(objective), range(3))
    assert objective.learned() == {"lr": 0.05}


class Pairs:
    """A store of no files that notes what it is asked for."""

    def __init__(self, size):
        self.asked, self.size = [], size

    def pair(self, number, epoch, later):
        self.asked.append((number, epoch, later))
        return torch.zeros(self.size), torch.ones(self.size)


def test_starts_and_targets_are_within_the_trajectory(real, cache):
    settings = {"syn_steps": 1, "batch_syn": 1, "expert_epochs": 2, "max_start_epoch": 2, "strategy": "none"}
    objective = make("mtt", real, cache, 1, settings=settings)
    objective.experts = Pairs(sum(objective.network.sizes))
    for step in range(60):
        objective.match(start(objective), objective.targets, step)
    assert {(number, epoch) for number, epoch, _ in objective.experts.asked} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert all(later - epoch == 2 for _, epoch, later in objective.experts.asked)


def test_a_target_behind_the_experts_end_is_refused(real):
    MTT(real.spec, {"max_start_epoch": 9, "expert_epochs": 2, "training_epochs": 10})
    for settings in ({"max_start_epoch": 10}, {"expert_epochs": 3}, {"training_epochs": 9}):
        with pytest.raises(UsageError, match="training_epochs") as caught:
            MTT(real.spec, {"max_start_epoch": 9, "expert_epochs": 2, "training_epochs": 10, **settings})
        assert "\n" not in str(caught.value)


def test_a_fresh_order_whenever_images_are_used_up(real, cache, monkeypatch):
    objective = make("mtt", real, cache, settings={"syn_steps": 12, "batch_syn": 7})  # 16 images: 3 steps an order
    with watching_training(monkeypatch, dd_plugins.trajectories.matching) as calls:
        for step in range(2):
            objective.match(start(objective), objective.targets, step)
    orders = []
    for *_, batches, _ in calls:
        for k in range(0, 12, 3):
            assert sorted(len(batch.rows) for batch in batches[k : k + 3]) == [2, 7, 7]
            orders.append(torch.cat([batch.rows for batch in batches[k : k + 3]]))
            assert orders[-1].sort().values.tolist() == list(range(16))
    assert len({tuple(order.tolist()) for order in orders}) == 8


@pytest.mark.parametrize("batch", [None, 3])
def test_a_step_sees_one_group(batch, real, cache, monkeypatch):
    groups = torch.tensor([7, 2, 5, 5, 7, 2, 2, 5, 7, 5, 7, 2, 2, 5, 7, 7])
    objective = make("mtt", real, cache, groups=groups, settings={"syn_steps": 40, "batch_syn": batch})
    with watching_training(monkeypatch, dd_plugins.trajectories.matching) as calls:
        objective.match(start(objective), objective.targets, 0)
    seen = {2: [], 5: [], 7: []}
    for rows in (batch.rows for batch in calls[0][3]):
        (group,) = groups[rows].unique().tolist()
        seen[group].append(rows)
    assert min(len(taken) for taken in seen.values()) > 5  # of 40, drawn at random
    for group, taken in seen.items():
        members = (groups == group).nonzero().flatten()
        at_once = 1 if batch is None else -(-len(members) // batch)
        for k in range(0, len(taken) - at_once + 1, at_once):
            assert torch.equal(torch.cat(taken[k : k + at_once]).sort().values, members)


def test_experts_are_trained_once_for_all_runs(real, tmp_path):
    jobs = []

    @contextmanager
    def job(name, total):
        done = []
        jobs.append((name, total, done))
        yield done.append

    objective = make("mtt", real, tmp_path, job=job)
    assert [(total, done) for _, total, done in jobs] == [(6, [1, 2, 3, 4, 5, 6])]
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2
    factory, before = Factory(real), [file.stat().st_mtime_ns for file in files]
    other = make("haba", real, tmp_path, factory=factory, job=job, seed=5)
    assert other.experts.files.place() == objective.experts.files.place()
    assert len(factory.born) == 2  # one to unroll, one adversary
    make("mtt", real, tmp_path, job=job, settings={"experts": 3})
    assert [total for _, total, _ in jobs] == [6, 3]
    assert before == [file.stat().st_mtime_ns for file in files]
    make("mtt", real, tmp_path, job=job, settings={"training_lr": 0.04})
    assert [total for _, total, _ in jobs] == [6, 3, 6]


def test_experts_in_memory_are_those_of_a_folder(real, tmp_path):
    images, steps = {}, range(3)
    for name, artifacts in (("folder", FolderArtifacts(tmp_path)), ("memory", MemoryArtifacts())):
        objective = make("mtt", real, tmp_path, artifacts=artifacts)
        matches = [objective.match(start(objective), objective.targets, step) for step in steps]
        images[name] = torch.stack([match.image_grad for match in matches])
    assert torch.equal(images["folder"], images["memory"])


def test_experts_beyond_the_limit_of_the_memory_are_refused_before_any_is_trained(real):
    factory = Factory(real)
    with pytest.raises(NotEnoughMemory, match=r"expert trajectories of made-up: .* exceed the limit of 9\.8 KiB"):
        make("mtt", real, None, factory=factory, artifacts=MemoryArtifacts(10_000))
    assert len(factory.born) == 1  # the one to unroll


# --------------------------------------------------------------------------------------------------------------- BPTT


@pytest.mark.parametrize("strategy", ["none", FULL])
@pytest.mark.parametrize("classes", [None, 2])
def test_bptt_is_autograd_through_the_whole_training(strategy, classes, watched, exact_cache, monkeypatch):
    settings = {"unroll": 4, "batch_syn": 3, "batch_real": 6, "strategy": strategy, "classes": classes}
    objective, images, factory, draws = make_exact("bptt", watched, exact_cache, settings=settings)
    trained_on = set()
    for step in range(6):
        with watching_training(monkeypatch, dd_plugins.objectives.bptt) as calls:
            match = objective.match(images, objective.targets, step)
        ((_, _, _, batches, lr, momentum),) = calls
        assert (len(batches), lr, momentum) == (4, 0.01, 0.9)
        network, leaf = factory.newest(), images.clone().requires_grad_()
        assert len(factory.born) == step + 1
        assert len(draws) == step + 1  # one for all steps and the real images

        def augment(batch, draw=draws[-1]):
            assert len(draw) == 1
            return objective.augmentation(batch, draw)

        plain = [(batch.rows, objective.targets[batch.rows], augment) for batch in batches]
        weights = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
        weights = unrolled(network, weights, leaf, plain, 0.01, 0.9)
        rows = watched.train.asked[-1]
        logits = torch.func.functional_call(network, weights, (augment(real_images(watched, rows)),))
        loss = cross_entropy(logits, watched.train.labels[rows]).mean()
        (image_grad,) = torch.autograd.grad(loss, leaf)
        assert float(match.loss) == pytest.approx(loss.item(), rel=1e-10)
        assert relative(match.image_grad, image_grad) < 1e-10
        counts = torch.bincount(watched.train.labels[rows], minlength=CLASSES)
        assert sorted(counts.tolist()) == ([6] * 4 if classes is None else [0, 0, 6, 6])
        for batch_rows, *_ in plain:
            assert torch.equal(torch.bincount(objective.targets[batch_rows], minlength=CLASSES), counts // 2)
            assert len(set(batch_rows.tolist())) == len(batch_rows)
        trained_on |= set(counts.nonzero().flatten().tolist())
    assert trained_on == set(range(CLASSES))


def test_images_that_bptt_did_not_draw_have_no_gradient(real, cache, monkeypatch):
    objective = make("bptt", real, cache, 6, settings={"unroll": 2, "batch_syn": 2, "strategy": "none"})
    batches = set()
    for step in range(3):
        with watching_training(monkeypatch, dd_plugins.objectives.bptt) as calls:
            match = objective.match(start(objective), objective.targets, step)
        batches |= {tuple(batch.rows.sort().values.tolist()) for batch in calls[0][3]}
        drawn = set(torch.cat([batch.rows for batch in calls[0][3]]).tolist())
        assert 2 * CLASSES <= len(drawn) <= 4 * CLASSES
        pulled = set((match.image_grad.flatten(1).norm(dim=1) > 0).nonzero().flatten().tolist())
        assert pulled == drawn
    assert len(batches) == 3 * 2  # each drawn anew


# --------------------------------------------------------------------------------------------------------------- HaBa


def naive_contrast(features, labels, temperature):
    unit = [row / row.square().sum().sqrt() for row in features]
    total = 0
    for i, anchor in enumerate(unit):
        others = [k for k in range(len(unit)) if k != i]
        exponents = {k: torch.exp(torch.dot(anchor, unit[k]) / temperature) for k in others}
        positive = [k for k in others if labels[k] == labels[i]]
        total = total - sum(torch.log(exponents[k] / sum(exponents.values())) for k in positive) / len(positive)
    return total / len(unit)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_supervised_contrast_is_a_double_loop(temperature):
    features = torch.randn(9, 5, generator=make_generator(0), dtype=torch.float64) * 3
    labels = torch.tensor([0, 1, 0, 2, 2, 1, 0, 2, 0])
    results = []
    for contrast in (supervised_contrast, naive_contrast):
        leaf = features.clone().requires_grad_()
        loss = contrast(leaf, labels, temperature)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def half_cosine(first, second):
    cosines = [torch.dot(a, b) / (torch.dot(a, a) * torch.dot(b, b)).sqrt() for a, b in zip(first, second, strict=True)]
    return (torch.stack(cosines).mean() + 1) / 2


def test_the_penalty_is_the_likeness_of_two_hallucinators(watched, exact_cache):
    """What HaBa adds to trajectory matching, on the adversary as it was before the step."""
    matches = []
    for weight in (0.0, 3.0):
        settings = {"strategy": FULL, "adversarial_weight": weight}
        objective, images, _, draws = make_exact("haba", watched, exact_cache, settings=settings)
        adversary = copy.deepcopy(objective.adversary.network)
        matches.append(objective.match(images, objective.targets, 0))
    assert len(draws) == 3 + 2  # steps, the penalty, and the adversary's own
    even, odd = torch.arange(0, 16, 2), torch.arange(1, 16, 2)
    found, losses = [], []
    for order in ([even, odd], [odd, even]):  # which hallucinator came first decides which draw was whose
        leaf = images.clone().requires_grad_()
        views = objective.augmentation(leaf[torch.cat(order)], draws[3])
        penalty = 3.0 * half_cosine(features_of(adversary, views[:8]), features_of(adversary, views[8:]))
        losses.append(penalty.item())
        found.append(torch.autograd.grad(penalty, leaf)[0])
    grad, loss = matches[1].image_grad - matches[0].image_grad, float(matches[1].loss - matches[0].loss)
    k = min((0, 1), key=lambda k: relative(grad, found[k]))
    assert relative(grad, found[k]) < 1e-10
    assert loss == pytest.approx(losses[k], rel=1e-10)
    assert relative(found[0], found[1]) > 1e-3


def test_the_adversary_classifies_contrasts_and_likens(watched, exact_cache):
    weights = {"classification_weight": 0.7, "likeness_weight": 0.6, "contrast_weight": 0.5}
    settings = {"strategy": "none", "adversary_lr": 0.05, "temperature": 0.3, **weights}
    objective, images, _, _ = make_exact("haba", watched, exact_cache, settings=settings)
    network, targets = copy.deepcopy(objective.adversary.network), objective.targets
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
    for step in range(3):
        drive(objective, images, [step], lr=0)
        features, labels = features_of(network, images), targets
        loss = 0.7 * cross_entropy(network(images), labels).mean()
        loss = loss + 0.6 * (1 - half_cosine(features[0::2], features[1::2]))
        loss = loss + 0.5 * naive_contrast(features, labels, 0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for one, other in zip(objective.adversary.network.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_haba_takes_two_different_hallucinators_of_many(watched, exact_cache):
    groups = torch.arange(CLASSES * 4) % 4
    objective, images, _, _ = make_exact("haba", watched, exact_cache, groups=groups, settings={"strategy": "none"})
    pairs = set()
    for step in range(12):
        plain = make(
            "mtt", watched, exact_cache, factory=Doubles(watched), groups=groups, settings={"strategy": "none"}
        )
        plain.lr, plain.lr_velocity = objective.lr, objective.lr_velocity
        plain.context.generator.set_state(objective.context.generator.get_state())
        match, without = (o.match(images, o.targets, step) for o in (objective, plain))
        extra = (match.image_grad - without.image_grad).flatten(1).norm(dim=1) > 1e-12
        pair = tuple(groups[extra].unique().tolist())
        assert len(pair) == 2
        assert torch.equal(extra, (groups == pair[0]) | (groups == pair[1]))
        pairs.add(pair)
    assert len(pairs) > 3  # of six


def test_one_hallucinator_alone_is_trajectory_matching(real, cache):
    groups = torch.zeros(CLASSES * 4, dtype=torch.int64)
    matches = []
    for kind in ("haba", "mtt"):
        learning = {"lr_momentum": 0.9, "lr_floor": 1e-3}  # HaBa's defaults
        objective = make(kind, real, cache, groups=groups, settings={"batch_syn": 8, **learning})
        matches.append(drive(objective, start(objective), range(3)))
    for one, other in zip(*matches, strict=True):
        assert torch.equal(one.image_grad, other.image_grad)
        assert torch.equal(one.loss, other.loss)


def test_haba_refuses_containers_without_groups_and_groups_that_are_unlike(real, cache):
    targets = targets_of(4)
    context = Context(Factory(real), make_generator(0), 10, torch.device("cpu"), network=NETWORK)
    unlike = dataclasses.replace(context, groups=torch.arange(16) // 8)  # two classes each
    for wrong in (context, unlike):
        for check in (
            lambda objective, wrong=wrong: objective.prepare(real, targets, wrong),
            lambda objective, wrong=wrong: objective.check(targets, wrong.groups, wrong.make_network(0)),
        ):
            with pytest.raises(IncompatibleError, match="haba") as caught:
                check(HaBaMatching(real.spec, TRAJECTORY))
            assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- DM


class Plain(Network):
    """A classifier that has nothing but logits."""

    api_version = 2

    def __init__(self, real):
        super().__init__(real.spec.image_shape, real.spec.num_classes)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(128, CLASSES))

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("kind", ["dm", "cafe", "haba"])
def test_networks_without_features_are_refused(kind, real, cache):
    objective = make(kind, real, cache)
    with pytest.raises(IncompatibleError, match="Plain has no") as caught:
        objective.check(objective.targets, objective.context.groups, Plain(real))
    assert "\n" not in str(caught.value)


UNEVEN = torch.tensor([2, 0, 3, 2, 0, 3, 3, 2, 2])  # and none of class 1


def of_class(objective, draw, rows, images, targets, label):
    """Augmented alike: the real images of a class and the synthetic ones."""
    record = Draw(draw.choice[label : label + 1], draw.noise[label : label + 1])
    expected, found = real_images(objective.real, rows[label]), images[targets == label]
    return objective.augmentation(expected, record), objective.augmentation(found, record)


@pytest.mark.parametrize("strategy", ["none", FULL])
@pytest.mark.parametrize("targets", [targets_of(3), UNEVEN])
def test_dm_is_a_loop_over_classes(targets, strategy, watched, exact_cache, monkeypatch):
    monkeypatch.setattr(dd_plugins.matching.features, "CHUNK", 7)  # real images embedded at once
    settings = {"batch_real": 6, "strategy": strategy}
    objective, images, factory, draws = make_exact("dm", watched, exact_cache, settings=settings, targets=targets)
    for step in range(3):
        match = objective.match(images, targets, step)
        network, rows, leaf = factory.newest(), watched.train.drawn[-1], images.clone().requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        for label in targets.unique().tolist():
            assert (watched.train.labels[rows[label]] == label).all()
            expected, found = of_class(objective, draws[-1], rows, leaf, targets, label)
            difference = features_of(network, expected).mean(0) - features_of(network, found).mean(0)
            loss = loss + (difference**2).sum()
        (image_grad,) = torch.autograd.grad(loss, leaf)
        assert float(match.loss) == pytest.approx(loss.item(), rel=1e-10)
        assert relative(match.image_grad, image_grad) < 1e-10
    assert len(draws) == 3
    assert not torch.equal(*watched.train.drawn[-2:])


def test_dm_takes_a_fresh_network_every_step_and_never_trains_it(real, cache):
    factory = Factory(real)
    objective = make("dm", real, cache, factory=factory)
    drive(objective, start(objective), range(4))
    first = [weights["classifier.weight"] for _, weights in factory.born]
    assert len(first) == 4
    assert len({float(weight.sum()) for weight in first}) == 4
    for network, weights in factory.born:
        assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["dm", "cafe"])
def test_augmentation_is_siamese(kind, real, cache):
    """Real images as synthetic ones, all of them: only the same augmentation makes their features equal."""
    settings = {"batch_real": 18, "strategy": "crop_scale_rotate"}
    if kind == "cafe":
        settings |= {"discrimination_weight": 0, "loops": "fixed", "inner": 0}
    for seed in range(3):
        objective = make(kind, real, cache, seed=seed, settings=settings, targets=real.train.labels)
        images = real.train.images()
        assert float(objective.match(images, objective.targets, 0).loss) < 1e-6
        assert float(objective.match(images.roll(1, 3), objective.targets, 0).loss) > 1e-3


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_embedding_in_chunks_is_embedding(norm, real, monkeypatch):
    monkeypatch.setattr(dd_plugins.matching.features, "CHUNK", 7)
    images, network = real.train.images(), Factory(real, norm=norm)(0)
    torch.testing.assert_close(embed_in_chunks(network, images), features_of(network, images))
    assert not embed_in_chunks(network, images).requires_grad
    if norm == "batch":
        chunk = features_of(network, images[:7])
        assert relative(embed_in_chunks(network, images)[:7], chunk) > 1e-2  # the whole batch was normalised as one
        network.eval()
        torch.testing.assert_close(embed_in_chunks(network, images), features_of(network, images))


def test_class_means_are_a_loop():
    features = torch.randn(9, 3, 2, 2, generator=make_generator(0), dtype=torch.float64)
    present, means = class_means(features, UNEVEN, CLASSES)
    assert present.tolist() == [True, False, True, True]
    assert not means[1].any()
    for label in (0, 2, 3):
        rows = [row for row, target in zip(features, UNEVEN.tolist(), strict=True) if target == label]
        torch.testing.assert_close(means[label], sum(rows) / len(rows))


# --------------------------------------------------------------------------------------------------------------- CAFE


def test_taps_of_the_fields_network():
    network = build_network("convnet", (3, 32, 32), 10, seed=0)
    images = torch.randn(2, 3, 32, 32, generator=make_generator(0))
    taps = network.taps(images)
    assert [tuple(tap.shape) for tap in taps] == [(2, 128, side, side) for side in (32, 16, 8, 4)]
    assert network.embed(images).shape == (2, 2048)
    assert torch.equal(taps[-1].flatten(1), network.embed(images))
    assert torch.equal(taps[-1], functional.avg_pool2d(taps[2], 2))


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("norm", ["instance", "none", "group"])
@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_taps_are_what_leaves_the_activations(pooling, norm, activation):
    config = {"width": 4, "depth": 3, "pooling": pooling, "norm": norm, "activation": activation}
    network, seen = build_network("convnet", (3, 16, 16), 5, config, seed=0), []
    for module in network.modules():
        if isinstance(module, nn.ReLU | nn.SiLU):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(2, 3, 16, 16, generator=make_generator(0))
    last = features_of(network, images)
    expected, seen[:] = [*seen], []
    taps = network.taps(images)
    assert len(taps) == len(expected) + 1 == 4
    assert all(torch.equal(tap, output) for tap, output in zip(taps, expected, strict=False))
    assert torch.equal(taps[-1].flatten(1), last)


def naive_cafe(network, batches, shallow, deep, discrimination):
    """Per class; ``batches``: label to its real and synthetic images."""
    blocks, loss, features, centres = list(network.features), 0, {}, {}

    def maps(images):
        found = []
        for convolution, norm, activation, pooling in blocks:
            found.append(activation(norm(convolution(images))))
            images = pooling(found[-1])
        return [*found, images]

    for label, (expected, found) in batches.items():
        pairs = list(zip(maps(expected), maps(found), strict=True))
        weights = [shallow] * (len(pairs) - 2) + [deep, deep]
        for weight, (real_maps, synthetic_maps) in zip(weights, pairs, strict=True):
            loss = loss + weight * ((real_maps.mean(0) - synthetic_maps.mean(0)) ** 2).sum()
        features[label], centres[label] = pairs[-1][0].flatten(1), pairs[-1][1].flatten(1).mean(0)
        loss = loss + ((features[label].mean(0) - centres[label]) ** 2).sum()
    for label, rows in features.items():
        for row in rows:
            logits = torch.stack([torch.dot(row, centres[k]) for k in sorted(centres)])
            loss = loss + discrimination * (torch.logsumexp(logits, 0) - logits[label])
    return loss


@pytest.mark.parametrize(
    ("strategy", "depth", "weights"), [("none", 3, None), (FULL, 2, None), (FULL, 3, (0.3, 0.7, 0.2))]
)
def test_cafe_is_a_loop_over_classes(strategy, depth, weights, watched, exact_cache, monkeypatch):
    monkeypatch.setattr(dd_plugins.objectives.cafe, "CHUNK", 13)  # real images held at once: two classes
    names = ("shallow_weight", "deep_weight", "discrimination_weight")
    settings = {"loops": "fixed", "batch_real": 6, "strategy": strategy}
    settings |= dict(zip(names, weights, strict=True)) if weights else {}
    targets = torch.tensor([2, 0, 3, 2, 0, 3, 1, 2, 2])
    objective = CAFE(watched.spec, settings)
    factory = Doubles(watched, depth=depth)
    objective.prepare(watched, targets, Context(factory, make_generator(0), 10, torch.device("cpu")))
    draws, draw = [], objective.augmentation.draw
    objective.augmentation.draw = lambda *given, **named: (draws.append(draw(*given, **named)), draws[-1])[1]
    images = start(objective).double()
    match = objective.match(images, targets, 0)
    rows, leaf = watched.train.drawn[-1], images.clone().requires_grad_()
    batches = {k: of_class(objective, draws[-1], rows, leaf, targets, k) for k in range(CLASSES)}
    loss = naive_cafe(factory.newest(), batches, *(weights or (0.1, 1.0, 0.01)))
    (image_grad,) = torch.autograd.grad(loss, leaf)
    assert float(match.loss) == pytest.approx(loss.item(), rel=1e-10)
    assert relative(match.image_grad, image_grad) < 1e-10


class PublishedRule:
    """The published loops, probe by probe; what comes next is told by ``step``."""

    def __init__(self, probes, classes, outer_range=0.04, inner_range=0.03, max_outer=10**9, max_inner=10**9):
        self.probes, self.classes, self.ranges = iter(probes), classes, (outer_range, inner_range)
        self.caps = max_outer, max_inner
        self.fresh = True

    def probe(self, level):
        return (level + sum(next(self.probes).tolist())) / self.classes

    def step(self):
        """One matching step; returns whether it began with a fresh network, or the epochs before it."""
        epochs = None if self.fresh else self.inner()
        if self.fresh:
            self.window, self.level, self.steps = [], 0.0, 0
        self.steps += 1
        self.level = self.probe(self.level)
        self.window.append(self.level)
        self.fresh = self.steps >= self.caps[0]
        if len(self.window) == 10:
            if max(self.window) - min(self.window) < self.ranges[0]:
                self.fresh = True
            else:
                del self.window[0]
        return epochs

    def inner(self):
        window, level = [], 0.0
        for epoch in range(1, self.caps[1] + 1):
            level = self.probe(level)
            window.append(level)
            if len(window) == 10:
                if max(window) - min(window) > self.ranges[1]:
                    return epoch
                del window[0]
        return self.caps[1]


def probes(seed, mean=0.3, sigma=0.05):
    generator = make_generator(seed)
    while True:
        yield (mean + sigma * torch.randn(CLASSES, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize(("mean", "sigma"), [(0.1, 0.01), (0.3, 0.05), (0.9, 0.1)])
def test_the_window_is_the_published_one(mean, sigma):
    window, levels, level = Window(), [], 0.0
    for accuracies, _ in zip(probes(1, mean, sigma), range(40), strict=False):
        level = (level + sum(accuracies.tolist())) / CLASSES
        levels.append(level)
        spread = window.add(accuracies)
        if len(levels) < 10:
            assert spread is None
        else:
            assert spread == pytest.approx(max(levels[-10:]) - min(levels[-10:]), abs=1e-6)
    torch.testing.assert_close(torch.tensor(window.values), torch.tensor(levels[-10:]))
    again = Window(window.values, window.level)
    assert again.add(torch.full((CLASSES,), 0.5)) == window.add(torch.full((CLASSES,), 0.5))


@pytest.mark.parametrize(
    ("mean", "sigma", "ranges", "caps"),
    [
        (0.05, 0.02, (0.04, 0.03), (30, 30)),
        (0.3, 0.03, (0.05, 0.1), (30, 12)),
        (0.3, 0.05, (0.08, 0.04), (11, 12)),
        (0.5, 0.2, (0.04, 0.03), (4, 3)),
    ],
)
def test_loops_are_the_published_ones(mean, sigma, ranges, caps, real, cache):
    ranges = dict(zip(("outer_range", "inner_range"), ranges, strict=True))
    settings = {**ranges, "max_outer": caps[0], "max_inner": caps[1], "batch_train": 256, "batch_real": 2}
    factory = Factory(real)
    objective = make("cafe", real, cache, 1, factory=factory, settings={**settings, "strategy": "none"})
    given = probes(0, mean, sigma)
    objective._accuracies = lambda network: next(given)
    rule = PublishedRule(probes(0, mean, sigma), CLASSES, max_outer=caps[0], max_inner=caps[1], **ranges)
    images, born, updates, seen = start(objective), 0, 0, []
    for step in range(30):
        epochs = rule.step()
        born, updates = (born + 1, 0) if epochs is None else (born, updates + epochs)
        objective.match(images, objective.targets, step)
        assert (len(factory.born), objective.trained.updates) == (born, updates), step
        seen.append(epochs)
    assert seen.count(None) > 1  # networks were replaced
    assert max(epochs or 0 for epochs in seen) <= caps[1]


def test_resuming_keeps_the_window(real, cache):
    settings = {"outer_range": 1e-9, "max_outer": 30, "max_inner": 1}
    whole, second = (make("cafe", real, cache, 1, settings=settings) for _ in range(2))
    images = start(whole)
    drive(whole, images, range(7))
    second.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    for objective in (whole, second):
        drive(objective, images.clone(), range(7, 12))
    assert second.outer.values == whole.outer.values
    assert len(whole.outer.values) == 10
    assert second.steps_taken == 12


def test_fixed_loops_have_their_lengths_and_no_probes(real, cache):
    factory = Factory(real)
    settings = {"loops": "fixed", "outer": 4, "inner": 2, "batch_train": 5}
    objective = make("cafe", real, cache, 3, factory=factory, settings=settings)
    objective._accuracies = None
    born, updates = [], []
    for step in range(10):
        drive(objective, start(objective), [step])
        born.append(len(factory.born))
        updates.append(objective.trained.updates)
    assert born == [1] * 4 + [2] * 4 + [3] * 2
    assert updates == [2 * 3 * k for k in (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)]  # batches of 5, 5 and 2
    assert (CAFE.Config().outer, CAFE.Config().inner) == (12, 10)


def test_probes_are_accuracies_on_fresh_real_images(watched, exact_cache):
    objective, _, factory, _ = make_exact("cafe", watched, exact_cache, settings={"probe": 7})
    network = factory(3)
    for _ in range(2):
        found, rows = objective._accuracies(network), watched.train.drawn[-1]
        assert rows.shape == (CLASSES, 7)
        for label, own in enumerate(rows):
            logits = network(real_images(watched, own))
            assert float(found[label]) == pytest.approx(sum(int(row.argmax()) == label for row in logits) / 7)
    assert not torch.equal(*watched.train.drawn[-2:])


def test_cafe_trains_with_plain_sgd_on_the_synthetic_images(watched, exact_cache):
    settings = {"loops": "fixed", "outer": 3, "inner": 4, "strategy": "none", "batch_train": 256, "network_lr": 0.1}
    objective, images, factory, _ = make_exact("cafe", watched, exact_cache, 2, settings=settings)
    for step in range(3):
        objective.match(images, objective.targets, step)
    network = factory.newest()
    for _ in range(2 * 4):
        gradients = torch.autograd.grad(
            cross_entropy(network(images), objective.targets).mean(), list(network.parameters())
        )
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    for one, other in zip(objective.trained.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
