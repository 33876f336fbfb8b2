"""The settings of every method against a second list, written down from the papers' code and tables on its own."""

from functools import cache

import pytest

from benchmark_adapters.report.references import published
from dd_plugins.engine.config import resolve
from dd_plugins.engine.methods import load_method, method_names


@cache
def settings(method, dataset, ipc):
    """What a run of this cell would take, defaults and all."""
    return resolve({"method": method, "dataset": dataset, "ipc": ipc}).model_dump(mode="json")


def setting(method, dataset, ipc, key):
    value = settings(method, dataset, ipc)
    for name in key.split("."):
        value = value[name]
    return value


# ---- gradient matching -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dc", "dsa"])
@pytest.mark.parametrize(
    ("ipc", "outer", "inner"), [(1, 1, 1), (10, 10, 50), (20, 20, 25), (30, 30, 20), (40, 40, 15), (50, 50, 10)]
)
def test_loops_of_gradient_matching(method, ipc, outer, inner):
    found = [setting(method, "cifar10", ipc, f"objective.{name}") for name in ("outer", "inner")]
    assert found == [outer, inner]
    assert setting(method, "cifar10", ipc, "steps") == 1000 * outer  # 1000 iterations


@pytest.mark.parametrize(("method", "init", "strategy"), [("dc", "noise", "none"), ("dsa", "real", "auto")])
def test_gradient_matching(method, init, strategy):
    for key, value in {
        "parameterization.init": init,
        "objective.batch_real": 256,
        "objective.batch_train": 256,
        "objective.network_lr": 0.01,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.1,
        "optimizer.momentum": 0.5,
        "optimizer.schedule": "constant",
        "network.name": "convnet",
    }.items():
        assert setting(method, "svhn", 10, key) == value, key
    assert setting(method, "svhn", 10, "objective").get("strategy", "none") == strategy


# ---- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ipc", "lr"), [(1, 1), (10, 1), (50, 1), (100, 10), (200, 10), (500, 10), (1000, 10), (1250, 10)]
)
def test_dm(ipc, lr):
    assert setting("dm", "cifar10", ipc, "optimizer.lr") == lr
    assert setting("dm", "cifar100", min(ipc, 100), "optimizer.lr") == 1
    for key, value in {
        "steps": 20000,
        "parameterization.init": "real",
        "objective.batch_real": 256,
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.5,
    }.items():
        assert setting("dm", "cifar10", ipc, key) == value, key


@pytest.mark.parametrize(("method", "strategy"), [("cafe", "none"), ("cafe-dsa", "auto")])
def test_cafe(method, strategy):
    for key, value in {
        "objective.strategy": strategy,
        "objective.shallow_weight": 0.1,
        "objective.deep_weight": 1,
        "objective.discrimination_weight": 0.01,
        "objective.outer_range": 0.04,
        "objective.inner_range": 0.03,
        "objective.network_lr": 0.01,
        "objective.batch_real": 256,
        "objective.batch_train": 256,
        "objective.probe": 128,
        "objective.loops": "adaptive",
        "optimizer.lr": 0.1,
        "optimizer.momentum": 0.5,
        "optimizer.decay": 0.5,
        "optimizer.milestones": [1200 / 2000, 1600 / 2000, 1800 / 2000],
        "parameterization.init": "noise",
    }.items():
        assert setting(method, "cifar10", 10, key) == value, key


# ---- trajectories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "ipc", "syn_steps", "epochs", "max_start", "lr", "lr_lr", "start_lr", "batch", "zca"),
    [
        ("cifar10", 1, 50, 2, 2, 1e2, 1e-7, 1e-2, None, True),
        ("cifar10", 10, 30, 2, 20, 1e2, 1e-5, 1e-3, None, True),
        ("cifar10", 50, 30, 2, 40, 1e3, 1e-5, 1e-3, None, False),
        ("cifar100", 1, 20, 3, 20, 1e3, 1e-5, 1e-2, None, True),
        ("cifar100", 10, 20, 2, 20, 1e3, 1e-5, 1e-2, None, False),
        ("cifar100", 50, 80, 2, 40, 1e3, 1e-5, 1e-2, 125, True),
        ("tiny-imagenet", 1, 10, 2, 10, 1e4, 1e-4, 1e-2, None, False),
        ("tiny-imagenet", 10, 20, 2, 40, 1e4, 1e-4, 1e-2, 200, False),
        ("tiny-imagenet", 50, 20, 2, 40, 1e4, 1e-4, 1e-2, 300, False),
    ],
)
def test_mtt(dataset, ipc, syn_steps, epochs, max_start, lr, lr_lr, start_lr, batch, zca):
    keys = ("syn_steps", "expert_epochs", "max_start_epoch", "lr_lr", "start_lr", "batch_syn")
    found = [setting("mtt", dataset, ipc, f"objective.{key}") for key in keys]
    assert found == [syn_steps, epochs, max_start, lr_lr, start_lr, batch]
    assert setting("mtt", dataset, ipc, "optimizer.lr") == lr
    data = setting("mtt", dataset, ipc, "data")
    assert data.get("zca", False) is zca


@pytest.mark.parametrize("method", ["mtt", "haba"])
def test_experts(method):
    values = {"experts": 100, "training_epochs": 50, "training_lr": 0.01, "training_batch": 256, "gradient": "exact"}
    assert {key: setting(method, "cifar10", 1, f"objective.{key}") for key in values} == values
    assert setting(method, "cifar10", 1, "steps") == {"mtt": 5000, "haba": 15000}[method]
    momenta = [setting(method, "cifar10", 1, key) for key in ("optimizer.momentum", "objective.lr_momentum")]
    assert momenta == {"mtt": [0.5, 0.5], "haba": [0.95, 0.9]}[method]
    assert setting(method, "cifar10", 1, "objective.lr_floor") == {"mtt": None, "haba": 1e-3}[method]


@pytest.mark.parametrize(
    ("ipc", "syn_steps", "max_start", "lr_lr", "start_lr"),
    [(1, 50, 2, 1e-7, 0.01), (10, 30, 20, 1e-5, 0.001), (50, 30, 20, 1e-5, 0.01)],
)
def test_haba(ipc, syn_steps, max_start, lr_lr, start_lr):
    for key, value in {
        "data": {"zca": True},
        "objective.syn_steps": syn_steps,
        "objective.expert_epochs": 2,
        "objective.max_start_epoch": max_start,
        "objective.lr_lr": lr_lr,
        "objective.start_lr": start_lr,
        "objective.adversarial_weight": 0.1,
        "objective.likeness_weight": 0.1,
        "objective.contrast_weight": 0.1,
        "objective.classification_weight": 1,
        "objective.temperature": 0.07,
        "objective.adversary_lr": 1e-3,
        "objective.adversary_momentum": 0.9,
        "optimizer.lr": 100,
    }.items():
        assert setting("haba", "cifar10", ipc, key) == value, key


# ---- IDC and RTP -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ipc", [1, 2, 5, 10, 20, 50, 100])
@pytest.mark.parametrize(
    ("dataset", "metric", "base", "real", "strategy", "cutmix"),
    [
        ("cifar10", "mse", 5e-3, 2000, "color_crop_cutout", 0.5),
        ("cifar100", "mse", 5e-3, 2000, "color_crop_cutout", 0.5),
        ("svhn", "mse", 5e-3, 500, "color_crop_cutout", 0.5),
        ("mnist", "l1", 1e-4, 500, "color_crop", 0),
        ("fashion-mnist", "l1", 1e-4, 500, "color_crop_cutout", 0.5),
    ],
)
def test_idc(ipc, dataset, metric, base, real, strategy, cutmix):
    assert setting("idc", dataset, ipc, "optimizer.lr") == pytest.approx(base * ipc / 10)
    updates = -(-real // 64)
    for key, value in {
        "parameterization.factor": 2,
        "parameterization.init": "mix",
        "objective.metric": metric,
        "objective.strategy": strategy,
        "objective.cutmix": cutmix,
        "objective.batch_real": 64,
        "objective.batch_syn": 128,
        "objective.network_updates": updates,
        "objective.max_updates": 100 * updates,
        "objective.network_lr": 0.01,
        "objective.network_momentum": 0.9,
        "objective.network_weight_decay": 5e-4,
        "objective.network_strategy": "color_crop",
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.5,
        "steps": 2000 * 100,
    }.items():
        assert setting("idc", dataset, ipc, key) == value, key
    assert load_method("idc").borrowed(dataset, ipc)[1] == []


def test_rtp():
    for key, value in {
        "parameterization.bases": 16,
        "parameterization.downsample": 2,
        "objective.unroll": 150,
        "objective.batch_syn": 32,
        "objective.batch_real": 64,
        "objective.network_lr": 0.01,
        "objective.network_momentum": 0.9,
        "objective.strategy": "none",
        "optimizer.lr": 0.1,
        "optimizer.momentum": 0.5,
        "optimizer.clip_norm": 2,
        "data": {},
    }.items():
        assert setting("rtp", "cifar10", 1, key) == value, key


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", method_names())
def test_every_block_says_where_it_comes_from(name):
    for block in load_method(name).settings:
        assert len(block.source) >= 4
        if block.applies.dataset == "digits":  # nobody published anything for it
            assert block.source.startswith("ours")


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "percent"),
    [
        ("dc", "cifar10", 10, 44.9), ("dc", "svhn", 1, 31.2), ("dsa", "cifar10", 1, 28.8),
        ("dsa", "cifar100", 50, 42.8),
        ("dm", "cifar10", 10, 48.9), ("dm", "tiny-imagenet", 50, 24.1), ("cafe", "cifar10", 1, 30.3),
        ("cafe-dsa", "cifar100", 10, 31.5), ("mtt", "cifar10", 1, 46.3), ("mtt", "tiny-imagenet", 10, 23.2),
        ("idc", "cifar10", 1, 50.6), ("idc", "cifar100", 20, 49.0), ("idc", "fashion-mnist", 50, 86.2),
        ("haba", "cifar10", 10, 69.9), ("haba", "cifar100", 1, 33.4), ("rtp", "cifar10", 1, 66.4),
        ("rtp", "cifar100", 10, 42.9), ("hmn", "cifar10", 50, 76.9),
    ],
)  # fmt: skip
def test_published_numbers(method, dataset, ipc, percent):
    assert published(method, dataset, ipc).percent == percent
