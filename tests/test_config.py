"""The configuration of a run: which value wins, what the run id covers, and what is said about mistakes."""

import hashlib
import json

import pytest
import yaml

from benchmark_adapters.runs.identity import compute_run_id
from dd_plugins import registry
from dd_plugins.api import ConfigError, UsageError
from dd_plugins.datasets import load_dataset
from dd_plugins.engine.config import RunConfig, resolve
from dd_plugins.engine.methods import load_method
from dd_plugins.engine.protocols import load_protocol

FINGERPRINT = "0123456789abcdef"


def _file(tmp_path, text):
    path = tmp_path / "given.yaml"
    path.write_text(text)
    return path


def _id(flags=None, assignments=(), config_file=None, fingerprint=FINGERPRINT):
    return compute_run_id(resolve(flags or {}, assignments, config_file), fingerprint)


# ---- which value wins ----------------------------------------------------------------------------------------------


def test_precedence_default_method_file_flags(tmp_path):
    default = RunConfig.model_fields["steps"].default
    assert default == 1000
    method = load_method("hmn").values("digits", 1)["steps"]
    assert method != default
    file = _file(tmp_path, "steps: 77\nseed: 3\noptimizer: {lr: 0.5}\n")
    assert resolve({"method": "hmn"}).steps == method
    assert resolve({"method": "hmn"}, config_file=file).steps == 77
    assert resolve({"method": "hmn", "steps": 5}, config_file=file).steps == 5
    mixed = resolve({"method": "hmn"}, ["steps=6", "optimizer.lr=0.25"], file)
    assert (mixed.steps, mixed.seed, mixed.optimizer.lr) == (6, 3, 0.25)
    assert mixed.optimizer.schedule == "cosine"  # the method's, left alone by the file


def test_flags_that_were_not_given_change_nothing():
    assert resolve(dict.fromkeys(("method", "dataset", "ipc", "seed", "steps", "protocol"))) == resolve({})


def test_a_mapping_is_the_same_as_its_single_values():
    together = resolve({}, ["optimizer={lr: 0.5, schedule: constant}"])
    assert together == resolve({}, ["optimizer.lr=0.5", "optimizer.schedule=constant"])
    assert together.optimizer.name == load_method("hmn").values("digits", 1)["optimizer.name"]


@pytest.mark.parametrize("name", ["pixel", "hmn"])
def test_a_part_by_name_alone(name):
    for assignment in (
        f"parameterization={name}",
        f"parameterization.name={name}",
        f"parameterization={{name: {name}}}",
    ):
        assert resolve({"method": "hmn"}, [assignment]).parameterization.name == name


def test_an_exchanged_part_loses_the_settings_of_the_former(tmp_path):
    file = _file(tmp_path, "parameterization: {name: hmn, memory_lr: 0.5}\nnetwork: {name: convnet, width: 8}\n")
    kept = resolve({"method": "hmn"}, [], file)
    assert (kept.parameterization.settings["memory_lr"], kept.network.settings["width"]) == (0.5, 8)
    swapped = resolve({"method": "hmn", "parameterization": "pixel"}, ["network.name=resnet18"], file)
    assert "memory_lr" not in swapped.parameterization.settings
    assert swapped.network.name == "resnet18"
    assert "width" not in swapped.network.settings
    assert resolve({"method": "dsa", "objective": "idc"}).objective.name == "idc"  # dsa sets objective.outer


def test_an_exchanged_protocol_loses_the_settings_of_the_former(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(resolve({}, ["protocol.train.epochs=5"]).to_yaml())
    assert resolve({}, config_file=file).protocol.name == "quick[epochs=5]"
    assert resolve({}, ["protocol.train.lr=0.5"], file).protocol.name == "quick[epochs=5,lr=0.5]"
    assert resolve({"protocol": "dsa"}, config_file=file).protocol == load_protocol("dsa")
    assert resolve({"protocol": "dsa"}, ["protocol.trials=2"], file).protocol.name == "dsa[trials=2]"


def test_an_exchanged_network_of_the_protocol_loses_the_settings_of_the_former(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(resolve({}, ["protocol.network.width=8"]).to_yaml())
    protocol = resolve({}, ["protocol.network.name=alexnet"], file).protocol
    assert (protocol.network.name, protocol.network.settings) == ("alexnet", {})
    assert protocol.name == "quick[network.name=alexnet]"


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("parameterization.memory_rl=1", ["parameterization.memory_rl", "memory_lr"]),
        ("objective.batch_reel=1", ["objective.batch_reel", "batch_real"]),
        ("network.widht=8", ["network.widht", "width"]),
        ("optimizer.schedul=cosine", ["optimizer.schedul", "schedule"]),
        ("protocol.train.epoch=3", ["protocol.train.epoch", "epochs"]),
        ("protocol.network.widht=3", ["protocol.network.widht", "width"]),
        ("protocol.epochs=3", ["protocol.epochs", "did you mean protocol.train.epochs?"]),
        ("optimizer.steps=3", ["optimizer.steps", "did you mean steps?"]),
        ("stepz=3", ["stepz", "steps"]),
        ("steps.many=3", ["steps.many"]),
        ("optimizer.lr=fast", ["optimizer.lr", "'fast'", "number"]),
        ("optimizer.lr=-1", ["optimizer.lr", "-1", "greater than 0"]),
        ("optimizer.lr=.nan", ["optimizer.lr", "nan", "finite"]),
        ("optimizer.name=lion", ["optimizer.name", "'lion'", "'adam' or 'sgd'"]),
        ("parameterization.init=zero", ["parameterization.init", "'zero'", "'real' or 'noise'"]),
        ("parameterization.widths=wide", ["parameterization.widths", "'wide'"]),
        ("steps=many", ["steps", "'many'", "integer"]),
        ("steps=-1", ["steps", "-1", "greater than or equal to 0"]),
        ("ipc=0", ["ipc", "0", "greater than or equal to 1"]),
        ("ipc=1.5", ["ipc", "1.5", "integer"]),
        ("seed=-1", ["seed", "-1"]),
        ("optimizer=7", ["optimizer", "7"]),
        ("protocol.train=7", ["protocol.train", "7"]),
        ("optimizer.lr", ["--set optimizer.lr", "KEY=VALUE"]),
        ("=3", ["--set =3", "KEY=VALUE"]),
        ("optimizer.lr=[1", ["--set optimizer.lr=[1", "YAML"]),
        ("method=[1]", ["method", "[1]", "name"]),
        ("protocol=[1]", ["protocol", "[1]", "name"]),
        ("parameterization=[1]", ["parameterization.name", "[1]"]),
        ("network.name=null", ["network.name", "None"]),
        ("dataset=null", ["dataset", "None"]),
    ],
)
def test_mistakes_name_path_value_and_what_is_allowed(assignment, parts):
    with pytest.raises(UsageError) as caught:
        resolve({"method": "hmn"}, [assignment])
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError, match=r"steps = -1.*optimizer\.lr = -1"):
        resolve({}, ["steps=-1", "optimizer.lr=-1"])


@pytest.mark.parametrize("text", ["- 1\n", "", "just words", "a: [1", "\x00"])
def test_a_file_that_is_no_configuration(tmp_path, text):
    with pytest.raises(ConfigError, match=r"given\.yaml"):
        resolve({}, config_file=_file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "given.yaml: expected a mapping at the top, but the file is empty"),
        ("# nothing\n", "the file is empty"),
        (
            "services: {web: {image: nginx}}\nnetworks: {}\n",
            "no settings of a run; it has the keys services, networks,",
        ),
        ("stepz: 3\n", "stepz; did you mean steps"),
    ],
)
def test_a_file_of_another_tool_is_one_line(tmp_path, text, part):
    with pytest.raises(ConfigError) as caught:
        resolve({}, config_file=_file(tmp_path, text))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_folder_as_configuration_suggests_its_config_yaml(tmp_path):
    with pytest.raises(ConfigError, match=r"but this is a folder$"):
        resolve({}, config_file=tmp_path)
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    with pytest.raises(ConfigError) as caught:
        resolve({}, config_file=tmp_path)
    assert f"did you mean {tmp_path / 'config.yaml'}?" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"method: \xff\xfe")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(ConfigError, match=path.name):
            resolve({}, config_file=path)


@pytest.mark.parametrize(("key", "kind"), [("method", "method"), ("protocol", "protocol")])
def test_unknown_method_and_protocol_list_all_there_are(key, kind):
    with pytest.raises(UsageError, match=rf"unknown {kind} 'nonsense' \(installed: .*dsa") as caught:
        resolve({key: "nonsense"})
    assert caught.value.exit_code == 2


# ---- the run id ----------------------------------------------------------------------------------------------------


def test_run_id_is_a_sha256_of_the_canonical_semantic_config():
    config = resolve({"method": "hmn"})
    content = json.loads(config.model_dump_json())
    for left_out in ("method", "dataset", "data", "protocol"):
        del content[left_out]
    for idle in ("pruning", "pruning_trials", "over_budget"):  # where nothing is pruned
        del content[idle]
    content["fingerprint"] = FINGERPRINT
    classes = {
        "parameterization": "dd_plugins.parameterizations.hmn:HMN",
        "objective": "dd_plugins.objectives.idc:IDC",
        "network": "dd_plugins.networks.convnet:ConvNet",
    }
    for part, value in classes.items():
        content[part]["plugin"] = ["dd-plugins", "0.1.0", value]
    assert (
        compute_run_id(config, FINGERPRINT)
        == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    )


def test_own_config_file_gives_the_same_run(tmp_path):
    config = resolve({"method": "dsa", "ipc": 10, "seed": 4}, ["network.width=8", "protocol.train.epochs=5"])
    again = resolve({}, config_file=_file(tmp_path, config.to_yaml()))
    assert again == config
    assert compute_run_id(again, FINGERPRINT) == compute_run_id(config, FINGERPRINT)


def test_writing_out_a_default_changes_nothing():
    assert _id({}, ["objective.network_batch=64", "optimizer.betas=[0.9, 0.99]"]) == _id()
    assert _id({}, ["optimizer.lr=1e-2"]) == _id({}, ["optimizer.lr=0.01"]) == _id()


@pytest.mark.parametrize(
    "assignment",
    ["protocol=dc", "protocol.train.epochs=5", "protocol.network.name=alexnet", "protocol.trials=2"],
)
def test_the_protocol_is_not_in_the_run_id(assignment):
    assert _id({}, [assignment]) == _id()


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=1",
        "steps=7",
        "ipc=2",
        "parameterization.memory_lr=0.5",
        "parameterization.init=noise",
        "objective.cutmix=0.25",
        "objective.name=dc",
        "network.width=8",
        "network.name=alexnet",
        "optimizer.momentum=0.25",
        "optimizer.betas=[0.5, 0.99]",
    ],
)
def test_everything_that_decides_the_images_is_in_the_run_id(assignment):
    assert _id({}, [assignment]) != _id()


def test_data_counts_by_its_fingerprint():
    assert _id(fingerprint="f" * 16) != _id()
    base = resolve({"method": "pixel"})
    assert compute_run_id(base.model_copy(update={"dataset": "folder:/elsewhere"}), FINGERPRINT) == compute_run_id(
        base, FINGERPRINT
    )


def test_nothing_about_the_machine_is_in_the_configuration():
    keys = " ".join(yaml.safe_load(resolve({}).to_yaml()))
    assert not any(word in keys for word in ("device", "chunk", "out", "checkpoint", "worker"))


def test_the_source_of_a_plugin_under_development_is_in_the_run_id(tmp_path, monkeypatch):
    file = tmp_path / "in_the_making.py"
    monkeypatch.syspath_prepend(tmp_path)
    ids = []
    for size in (1, 2, 1):
        file.write_text(f"from dd_plugins.parameterizations.pixel import Pixel as Mine\nSIZE = {size}\n")
        with registry.trusted("in_the_making:Mine"):
            ids.append(_id({"parameterization": "in_the_making:Mine"}))
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize(
    "name", ["y" * 300, "y" * 900_000, "/" + "y" * 900_000, "./" + "y/" * 9000, "folder:" + "y" * 5000]
)
def test_a_long_name_of_a_data_set_is_one_short_line(name):
    with pytest.raises(UsageError) as caught:
        load_dataset(resolve({"dataset": name}).dataset)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("part", ["parameterization", "objective", "network", "protocol", "method", "dataset"])
@pytest.mark.parametrize("value", ["1", "[a]", "1.5", "true"])
def test_what_is_no_name_is_refused_where_one_is_expected(part, value):
    with pytest.raises(ConfigError, match=part) as error:
        resolve({}, [f"{part}={value}"])
    assert "\n" not in str(error.value)
