"""DC, DSA and IDC on a tiny made-up data set: loops, state, and what matching must leave alone."""

import pytest
import torch
from made_up import Factory, drive, make_real
from torch.nn.modules.batchnorm import _BatchNorm

from dd_plugins.api import Context, StorageBudget, read_tensors, write_tensors
from dd_plugins.objectives.dc import DC
from dd_plugins.objectives.dsa import DSA
from dd_plugins.objectives.idc import IDC
from dd_plugins.parameterizations.pixel import Pixel
from dd_plugins.seeds import make_generator

CLASSES, SHAPE = 4, (2, 8, 8)
SMALL_IDC = {"batch_real": 5, "network_updates": 2, "max_updates": 6, "network_batch": 7}
CASES = {
    "dc": (DC, {"outer": 4, "inner": 2, "batch_real": 5, "batch_train": 5}),
    "dsa": (DSA, {"outer": 4, "inner": 2, "batch_real": 5, "batch_train": 5}),
    "idc": (IDC, {**SMALL_IDC, "pool": 2, "batch_syn": 2}),
    "idc cosine": (IDC, {**SMALL_IDC, "pool": 1, "metric": "cosine", "train_every": 2}),
}


@pytest.fixture(scope="module")
def real():
    return make_real(CLASSES, SHAPE)


def make(kind, real, count=3, seed=0, factory=None, settings=None):
    objective_class, config = CASES[kind]
    objective = objective_class(real.spec, {**config, **(settings or {})})
    targets = torch.arange(CLASSES).repeat_interleave(count)
    context = Context(factory or Factory(real), make_generator(seed), 10, torch.device("cpu"))
    objective.prepare(real, targets, context)
    return objective


def start(objective, seed=3):
    return torch.randn(len(objective.targets), *SHAPE, generator=make_generator(seed))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", list(CASES))
def test_matches_have_shapes_and_change_nothing_else(kind, count, real):
    objective = make(kind, real, count)
    before = [t.clone() for t in (real.train.pixels, real.train.labels, torch.get_rng_state())]
    for step in range(5):
        index = objective.select(step)
        images, targets = start(objective, step)[index], objective.targets[index]
        given = images.clone()
        match = objective.match(images, targets, step)
        assert match.loss.shape == ()
        assert match.image_grad.shape == images.shape
        assert match.loss > 0
        assert torch.isfinite(match.image_grad).all()
        assert (match.image_grad.flatten(1).norm(dim=1) > 0).all()  # every image is pulled
        assert [t.requires_grad for t in (match.loss, match.image_grad)] == [False, False]
        assert torch.equal(images, given)
    behind = (real.train.pixels, real.train.labels, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, behind, strict=True))


@pytest.mark.parametrize("kind", list(CASES))
@pytest.mark.parametrize("saved_at", [0, 2, 3, 4])
def test_resuming_is_bit_identical(kind, saved_at, real, tmp_path):
    whole = make(kind, real)
    images = start(whole)
    expected = drive(whole, images, range(6))
    first = make(kind, real)
    resumed = start(first)
    drive(first, resumed, range(saved_at))
    write_tensors(tmp_path / "state", first.state_dict(), {})  # through a file: tensors alone
    second = make(kind, real, seed=99)
    second.load_state_dict(read_tensors(tmp_path / "state")[0])
    for match, other in zip(expected[saved_at:], drive(second, resumed, range(saved_at, 6)), strict=True):
        assert torch.equal(match.image_grad, other.image_grad)
        assert torch.equal(match.loss, other.loss)
    assert torch.equal(images, resumed)


@pytest.mark.parametrize("kind", list(CASES))
def test_a_state_can_be_loaded_twice(kind, real):
    objective = make(kind, real)
    drive(objective, start(objective), range(2))
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    runs = []
    for _ in range(2):
        again = make(kind, real)
        again.load_state_dict(state)
        runs.append(drive(again, start(again), range(2, 6)))
    assert all(torch.equal(a.image_grad, b.image_grad) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("kind", list(CASES))
def test_gradients_follow_their_images(kind, real):
    results = []
    for order in (torch.arange(12), torch.randperm(12, generator=make_generator(5))):
        objective = make(kind, real)
        match = objective.match(start(objective)[order], objective.targets[order], 0)
        results.append((match.loss, match.image_grad[torch.argsort(order)]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dsa", "idc"])
def test_every_class_has_a_record_of_its_own(kind, real):
    objective = make(kind, real, settings={"strategy": "crop_scale_rotate"})
    draws, draw = [], objective.augmentation.draw
    objective.augmentation.draw = lambda *args, **options: (draws.append(draw(*args, **options)), draws[-1])[1]
    objective.match(start(objective), objective.targets, 0)
    assert len(draws[0].noise.unique(dim=0)) == CLASSES
    assert len(draws[0].choice.unique(dim=0)) == 3  # of four classes, with this seed


@pytest.mark.parametrize("kind", list(CASES))
def test_all_classes_at_once_are_one_after_the_other(kind, real):
    matches = []
    for strategy in ("loop", "vmap"):
        objective = make(kind, real, settings={"class_strategy": strategy})
        matches.append(objective.match(start(objective), objective.targets, 0))
    torch.testing.assert_close(matches[0].loss, matches[1].loss)
    torch.testing.assert_close(matches[0].image_grad, matches[1].image_grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "most"), [("dc", 1.0), ("dsa", 1.0), ("idc", 1e-6), ("idc cosine", 1e-4)])
def test_augmentation_is_siamese(kind, most, real):
    """Real images as synthetic ones, all of them: only the same augmentation makes the gradients equal."""
    targets, settings = real.train.labels, {"batch_real": 18}
    for seed in range(4):
        objective = make(kind, real, 18, seed, settings=settings)
        images = real.train.images()
        assert float(objective.match(images, targets, 0).loss) < most
        shifted = images.roll(1, 3)  # what another augmentation of one side would look like
        assert float(objective.match(shifted, targets, 0).loss) > most


# ------------------------------------------------------------------------------------------------- loops


@pytest.mark.parametrize("ipc", [1, 5, 10, 20, 30, 40, 50, 100])
def test_loops_of_the_authors(ipc, real):
    table = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    objective = DSA(real.spec)
    objective.prepare(real, torch.arange(CLASSES).repeat_interleave(ipc), None)
    assert objective.loops() == table[{5: 1, 100: 50}.get(ipc, ipc)]
    objective.config = DSA.Config(outer=7, inner=0)
    assert objective.loops() == (7, 0)


def test_dc_with_one_image_a_class_never_trains(real):
    factory = Factory(real)
    objective = make("dc", real, 1, factory=factory, settings={"outer": None, "inner": None})
    drive(objective, start(objective), range(5))
    assert len(factory.born) == 5  # a fresh network each step
    for network, weights in factory.born:
        assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_network_lasts_for_the_outer_steps(real):
    factory = Factory(real)
    objective = make("dc", real, factory=factory)
    images, born, updates = start(objective), [], []
    for step in range(10):
        drive(objective, images, [step])
        born.append(len(factory.born))
        updates.append(objective.trained.updates)
    assert born == [1] * 4 + [2] * 4 + [3] * 2
    assert updates == [2 * 3 * k for k in (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)]  # batches of 5, 5 and 2


def test_idc_networks_grow_old_and_are_replaced(real):
    factory = Factory(real)
    objective = make("idc", real, factory=factory, settings={"pool": 1})
    ages = []
    for step in range(9):
        drive(objective, start(objective), [step])
        ages.append(objective.pool[0].updates)
    assert ages == [0, 2, 4, 0, 2, 4, 0, 2, 4]  # below the 5 of max_updates
    assert len(factory.born) == 3


@pytest.mark.parametrize("train_every", [1, 2, 3, 4])
def test_idc_trains_every_network_of_its_pool(train_every, real):
    objective = make("idc", real, settings={"pool": 2, "train_every": train_every, "max_updates": 100})
    drive(objective, start(objective), [0])
    assert [network.updates for network in objective.pool] == [0, 50]  # of evenly spread age
    drive(objective, start(objective), range(1, 4 * train_every))
    assert [network.updates for network in objective.pool] == [2, 52]
    drive(objective, start(objective), [4 * train_every])
    assert [network.updates for network in objective.pool] == [4, 54]


def test_idc_selects_at_most_batch_syn_of_each_class(real):
    objective, seen = make("idc", real, 5), set()
    for step in range(30):
        index = objective.select(step)
        assert (index.diff() > 0).all()
        assert torch.bincount(objective.targets[index]).tolist() == [2] * CLASSES
        seen |= set(index.tolist())
    assert seen == set(range(20))


# ---------------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("kind", ["dc", "dsa"])
def test_batch_norm_is_frozen_on_real_statistics(kind, real):
    objective, seen = make(kind, real, factory=Factory(real, norm="batch")), []
    make_network = objective.context.make_network

    def watched(seed):
        network = make_network(seed)
        network.features[0][1].register_forward_pre_hook(lambda norm, inputs: seen.append((norm.training, inputs[0])))
        return network

    object.__setattr__(objective.context, "make_network", watched)
    objective.match(start(objective), objective.targets, 0)
    norms = [module for module in objective.trained.network.modules() if isinstance(module, _BatchNorm)]
    assert not any(norm.training for norm in norms)
    assert objective.trained.network.features[0].training
    (batch,) = (inputs for training, inputs in seen if training)
    assert len(batch) == 16 * CLASSES
    rows = batch.transpose(0, 1).flatten(1)
    torch.testing.assert_close(norms[0].running_mean, 0.1 * rows.mean(1))
    torch.testing.assert_close(norms[0].running_var, 0.9 + 0.1 * rows.var(1))
    drive(objective, start(objective), range(1, 3))  # trained in between, and frozen again
    assert not any(norm.training for norm in norms)
    assert int(norms[0].num_batches_tracked) == 3 + 2 * 2 * 3


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_idc_takes_networks_with_batch_norm(strategy, real):
    objective = make("idc", real, factory=Factory(real, norm="batch"), settings={"class_strategy": strategy})
    assert all(torch.isfinite(match.image_grad).all() for match in drive(objective, start(objective), range(3)))


@pytest.mark.parametrize(("kind", "lr"), [("dc", 0.2), ("dsa", 0.2), ("idc", 0.2), ("idc cosine", 2.0)])
def test_loss_falls_on_one_network(kind, lr, real):
    settings = {"dc": {"outer": 1}, "dsa": {"outer": 1, "strategy": "none"}}
    settings = settings.get(kind, {"network_updates": 0, "strategy": "none", "batch_syn": 9})
    objective = make(kind, real, 2, factory=Factory(real, fixed=1), settings={"batch_real": 18, **settings})
    container = Pixel(real.spec, StorageBudget.ipc(real.spec, 2), {"init": "noise"})
    container.reset(make_generator(0), None)
    optimizer, losses = torch.optim.SGD(container.parameters(), lr), []
    for step in range(20):
        match = objective.match(container.decode(), container.labels, step)
        optimizer.zero_grad()
        container.backward(torch.arange(8), match.image_grad)
        optimizer.step()
        losses.append(float(match.loss))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", ["dc", "idc cosine", "idc"])
def test_threads_change_no_bit(kind, real):
    """Classes, and the networks of a pool, are independent: how many threads work on them decides nothing."""

    def matches(threads):
        torch.set_num_threads(threads)
        # DC's training between steps is one network's alone: torch shares its operations, and rounding follows.
        objective = make(kind, real, 2, settings={"outer": 1} if kind == "dc" else None)
        return drive(objective, start(objective), range(5))

    try:
        for one, two in zip(matches(1), matches(2), strict=True):
            assert torch.equal(one.loss, two.loss)
            assert torch.equal(one.image_grad, two.image_grad)
    finally:
        torch.set_num_threads(1)
