"""Protocols and methods that come with the package: all of them load, and changes show."""

import pytest

from benchmark_adapters.runs.compare import matrix
from benchmark_adapters.runs.notes import lent_settings
from dd_plugins.api import DataSpec
from dd_plugins.engine.config import resolve
from dd_plugins.engine.methods import choose_method, load_method, method_names
from dd_plugins.engine.protocols import load_protocol, protocol_names, protocol_values
from dd_plugins.training import build_augmentation


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_loads_under_its_file_name(name):
    protocol = load_protocol(name)
    assert (protocol.name, len(protocol.hash)) == (name, 10)
    assert protocol.summary
    assert protocol.source


@pytest.mark.parametrize("name", [name for name in protocol_names() if name.endswith("-steps")])
def test_a_step_matched_twin_differs_in_that_alone(name):
    twin, single = load_protocol(name), load_protocol(name.removesuffix("-steps"))
    assert twin.train == single.train.model_copy(update={"match_updates": True})
    assert (twin.network, twin.trials) == (single.network, single.trials)
    assert not single.train.match_updates
    assert twin.hash != single.hash


def test_a_changed_protocol_tells_it_in_name_and_hash():
    plain, changed = load_protocol("dsa"), resolve({"protocol": "dsa"}, ["protocol.train.epochs=5"]).protocol
    assert changed.name == "dsa[epochs=5]"
    assert changed.hash != plain.hash
    unchanged = resolve({"protocol": "dsa"}, [f"protocol.train.epochs={protocol_values('dsa')['train']['epochs']}"])
    assert unchanged.protocol == plain
    spelled = resolve({"protocol": "dsa"}, ["protocol.train.weight_decay=5e-4"]).protocol
    assert (spelled.name, spelled.hash) == ("dsa", plain.hash)  # YAML 1.1 reads 5e-4 as a string


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("idc", (("color",), ("crop", "scale", "rotate"))),
        ("idc-mnist", (("color",), ("crop", "scale", "rotate"))),
        ("idc-svhn-ipc1", (("color",), ("crop", "scale", "rotate"), ("cutout",))),
    ],
)
def test_idcs_evaluators_of_data_that_is_not_mirrored(name, slots):
    protocol, data = load_protocol(name), DataSpec("mnist", 10, (1, 28, 28), (0.1,), (0.3,), mirror=False)
    assert build_augmentation(protocol.train, data).slots == slots
    assert protocol.train.cutmix == (0.5 if name == "idc" else 0)
    same = {"cutmix": 0.5, "strategy": "auto"}
    assert protocol.train.model_copy(update=same) == load_protocol("idc").train


def test_default_protocol_depends_on_the_data_alone():
    assert resolve({}).protocol.name == "quick"
    assert resolve({"dataset": "cifar10"}).protocol.name == "dsa"


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
@pytest.mark.parametrize("name", method_names())
def test_every_method_resolves_without_touching_data(name, dataset, ipc, monkeypatch):
    monkeypatch.setattr("dd_plugins.datasets.load_dataset", lambda *_, **__: pytest.fail("touched data"))
    config, method = resolve({"method": name, "dataset": dataset, "ipc": ipc}), load_method(name)
    assert config.method == method.name == name
    assert (config.parameterization.name, config.objective.name) == (method.parameterization, method.objective)
    dumped = config.model_dump(mode="json")
    for key, value in method.values(dataset, ipc).items():
        found = dumped
        for part in key.split("."):
            found = found[part]
        assert found == value, key


@pytest.mark.parametrize(
    ("ipc", "nearest", "inner"), [(2, 1, 1), (4, 10, 50), (7, 10, 50), (14, 10, 50), (15, 20, 25), (400, 50, 10)]
)
def test_an_ipc_without_settings_takes_those_of_the_nearest_and_says_so(ipc, nearest, inner):
    config = resolve({"method": "dsa", "dataset": "cifar10", "ipc": ipc})
    assert (config.objective.settings["outer"], config.objective.settings["inner"]) == (nearest, inner)
    assert config.steps == 1000 * nearest
    told = lent_settings(config)
    assert f"dsa has no settings for IPC {ipc}; those of IPC {nearest} are taken" in told
    assert f"objective.inner={inner}" in told


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "assignments"),
    [
        ("dsa", "cifar10", 10, []),
        ("dm", "cifar10", 20, ["optimizer.lr=3"]),  # its own value, not the one that is lent
        ("dsa", "digits", 5, []),  # settings of the data set replace all that is lent
        ("hmn", "cifar10", 5, []),  # sizes of a container belong to one budget
        ("rtp", "cifar10", 5, []),
    ],
)
def test_nothing_is_said_where_nothing_is_lent(method, dataset, ipc, assignments):
    assert lent_settings(resolve({"method": method, "dataset": dataset, "ipc": ipc}, assignments)) == ""


@pytest.mark.parametrize(("container", "objective"), [("rtp", "dm"), ("idc", "dc"), ("hmn", "mtt"), ("haba", "dm")])
@pytest.mark.parametrize(("dataset", "ipc"), [("cifar10", 1), ("digits", 5), ("cifar10", 50)])
def test_a_pair_means_the_same_whichever_command_names_it(container, objective, dataset, ipc):
    cell = {"dataset": dataset, "ipc": ipc}
    named = resolve({"method": objective, "parameterization": container, **cell})
    (contender,) = matrix([container], [objective], [])
    assert resolve({**contender.flags, **cell}) == named
    assert (named.optimizer.name, named.optimizer.lr, named.optimizer.schedule) == ("adam", 0.01, "cosine")
    assert named.steps == resolve({"method": objective, **cell}).steps
    assert named.parameterization.settings.get("lr") is None  # rtp's own rate is SGD's


def test_rates_of_adam_come_along_with_their_container():
    hmn = load_method("hmn").values("digits", 5)
    found = resolve({"method": "mtt", "parameterization": "hmn", "dataset": "digits", "ipc": 5}).parameterization
    assert found.settings["memory_lr"] == hmn["parameterization.memory_lr"]


def test_parts_choose_the_method_that_comes_closest():
    assert choose_method(None, None, None).name == "hmn"
    assert choose_method(None, "pixel", None).name == "pixel"
    assert choose_method(None, "pixel", "dsa").name == "dsa"
    assert choose_method(None, "hmn", "idc").name == "hmn"
    assert choose_method(None, "pixel", "cafe").name == "cafe"
    assert choose_method(None, "hmn", "dsa").name == "dsa"
    assert choose_method(None, "rtp", "idc").name == "idc"
    assert choose_method(None, "pixel", "haba").name == "haba"
    assert choose_method(None, "hmn", "my_module:Mine").name == "hmn"
    assert choose_method("dc", "hmn", "idc").name == "dc"
