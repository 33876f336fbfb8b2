"""DM, CAFE, MTT, BPTT and HaBa's matching against naive formulas and plain unrolling; their loops and their state."""

import copy
import dataclasses
from contextlib import contextmanager

import pytest
import torch
from made_up import Factory, drive, make_real
from safetensors.torch import load_file
from torch.nn import functional

import dd_plugins.matching.features
import dd_plugins.objectives.bptt
import dd_plugins.objectives.cafe
import dd_plugins.trajectories.matching
from dd_plugins.api import Context, Split, UsageError, read_tensors, write_tensors
from dd_plugins.networks import build_network
from dd_plugins.objectives.bptt import BPTT
from dd_plugins.objectives.cafe import CAFE
from dd_plugins.objectives.dm import DM
from dd_plugins.objectives.haba import HaBaMatching
from dd_plugins.objectives.mtt import MTT
from dd_plugins.seeds import make_generator

CLASSES, SHAPE = 4, (2, 8, 8)
FULL = "color_crop_cutout_flip_scale_rotate"
NETWORK = {"name": "convnet", "width": 4, "depth": 2}
EXPERTS = {"experts": 2, "training_epochs": 3, "training_lr": 0.05, "training_batch": 16}
TRAJECTORY = {**EXPERTS, "syn_steps": 3, "expert_epochs": 1, "max_start_epoch": 3, "start_lr": 0.05, "lr_lr": 1e-3}
SMALL_CAFE = {"batch_real": 5, "probe": 3, "batch_train": 5, "strategy": FULL}
CASES = {
    "dm": (DM, {"batch_real": 5}),
    "cafe": (CAFE, {**SMALL_CAFE, "inner_range": 1e-9, "max_outer": 3, "max_inner": 12}),
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
    given = {"cache": cache, "groups": groups, "network": NETWORK, **context}
    objective.prepare(real, targets, Context(factory, make_generator(seed), 10, torch.device("cpu"), **given))
    return objective


def start(objective, seed=3):
    return torch.randn(len(objective.targets), *SHAPE, generator=make_generator(seed))


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


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
    expected = drive(whole, images, range(6))
    for saved_at in (0, 2, 3, 5):
        first = make(kind, real, cache)
        resumed = start(first)
        drive(first, resumed, range(saved_at))
        write_tensors(tmp_path / "state", first.state_dict(), {})  # through a file: tensors alone
        second = make(kind, real, cache, seed=99)
        second.load_state_dict(read_tensors(tmp_path / "state")[0])
        for match, other in zip(expected[saved_at:], drive(second, resumed, range(saved_at, 6)), strict=True):
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
    """Normalised by hand."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (real.spec.mean, real.spec.std))
    return (real.train.pixels[real.train.index[rows]].double() / 255 - mean) / std


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
    pairs, pair = [], objective.store.pair
    objective.store.pair = lambda *args: (pairs.append((args, pair(*args))), pairs[-1][1])[1]
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
            assert objective.learned() == {"lr": pytest.approx(float(lr), rel=1e-9)}
            match = objective.match(images, objective.targets, step)
            (number, epoch, later), (begin, goal) = pairs[-1]
            weights = load_file(objective.store.file(number))["weights"]
            assert torch.equal(torch.stack([begin, goal]), weights[[epoch, later]])
            assert torch.equal(calls[-1][1], begin)
            assert torch.equal(calls[-1][2], images)
            assert len(calls[-1][3]) == 5
            assert all(torch.equal(batch.targets, objective.targets[batch.rows]) for batch in calls[-1][3])
            loss, image_grad, lr.grad = naive_trajectory(calls[-1], goal, kind == "tesla")
            assert float(match.loss) == pytest.approx(float(loss), rel=1e-10)
            assert relative(match.image_grad, image_grad) < 1e-10
            optimizer.step()
    assert len(draws) == 3 * 5  # anew every step
    assert all(len(draw) == len(b.rows) for draw, b in zip(draws, [b for call in calls for b in call[3]], strict=True))
    assert len({draw.noise.sum().item() for draw in draws}) == 3 * 5
    assert float(lr) != pytest.approx(0.05, rel=1e-3)  # it has learned something


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
    objective.store = Pairs(sum(objective.network.sizes))
    for step in range(100):
        objective.match(start(objective), objective.targets, step)
    assert {(number, epoch) for number, epoch, _ in objective.store.asked} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert all(later - epoch == 2 for _, epoch, later in objective.store.asked)


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
        seen[group].append(rows.tolist())
    assert min(len(taken) for taken in seen.values()) > 5  # of 40, drawn at random
    for group, taken in seen.items():
        members = (groups == group).nonzero().flatten().tolist()
        at_once = 1 if batch is None else -(-len(members) // batch)
        for k in range(0, len(taken) - at_once + 1, at_once):
            assert sorted(sum(taken[k : k + at_once], [])) == members


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
    assert other.store.path == objective.store.path
    assert len(factory.born) == 2  # one to unroll, one adversary
    make("mtt", real, tmp_path, job=job, settings={"experts": 3})
    assert [total for _, total, _ in jobs] == [6, 3]
    assert before == [file.stat().st_mtime_ns for file in files]
    make("mtt", real, tmp_path, job=job, settings={"training_lr": 0.04})
    assert [total for _, total, _ in jobs] == [6, 3, 6]


def test_experts_need_a_folder(real):
    with pytest.raises(UsageError, match="folder"):
        make("mtt", real, None)


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
        assert float(match.loss) == pytest.approx(float(loss), rel=1e-6)  # float32 normalises the real images
        assert relative(match.image_grad, image_grad) < 1e-6
        counts = torch.bincount(watched.train.labels[rows], minlength=CLASSES)
        assert sorted(counts.tolist()) == ([6] * 4 if classes is None else [0, 0, 6, 6])
        for batch_rows, *_ in plain:
            assert torch.equal(torch.bincount(objective.targets[batch_rows], minlength=CLASSES), counts // 2)
            assert len(set(batch_rows.tolist())) == len(batch_rows)
        trained_on |= set(counts.nonzero().flatten().tolist())
    assert trained_on == set(range(CLASSES))
