"""Names as users type them: any case, suggestions for what is not there, and one spelling in configurations."""

import pytest
from tiny_runs import command

from benchmark_adapters.formats import exporting
from benchmark_adapters.runs.benchmarks import split_settings
from benchmark_adapters.runs.compare import contenders, matrix
from benchmark_adapters.runs.identity import compute_run_id
from dd_plugins import names, registry
from dd_plugins.api import AmbiguousPluginError, ConfigError, UnknownPluginError
from dd_plugins.datasets import load_dataset, split_spec
from dd_plugins.engine.config import resolve


def test_a_name_matches_itself_before_one_of_another_case():
    assert names.matches("Ab", ["ab", "Ab", "AB"]) == ["Ab"]
    assert names.matches("aB", ["ab", "Ab", "x"]) == ["ab", "Ab"]
    assert names.choose("thing", "AB", ["ab", "x"]) == "ab"
    with pytest.raises(AmbiguousPluginError, match="ab, Ab"):
        names.choose("thing", "aB", ["ab", "Ab"])


def test_a_long_name_is_cut():
    with pytest.raises(UnknownPluginError) as caught:
        registry.find("network", "x" * 2_000_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_installed_name_is_found_in_any_case(kind):
    for info in registry.list_plugins(kind):
        full = f"{info.distribution}/{info.name}"
        for spec in (info.name.upper(), info.name.title(), full.upper()):
            assert registry.find(kind, spec) == info
            assert registry.is_installed(kind, spec)
            assert registry.canonical(kind, spec) == info.spec


def test_what_is_not_installed_stays_as_it_is():
    assert registry.canonical("network", "NoNet") == "NoNet"
    assert registry.canonical("network", "Module:Class") == "Module:Class"


@pytest.mark.parametrize(
    ("kind", "spec", "hint"),
    [
        ("parameterization", "HMNN", "did you mean hmn?"),
        ("parameterization", "DSA", "dsa is an objective: --objective dsa"),
        ("objective", "Hmn", "hmn is a parameterization: --param hmn"),
        ("objective", "convnet", "convnet is a network: --network convnet"),
        ("dataset", "cifar-10", "did you mean cifar10"),
        ("dataset", "aum", "aum is a pruning: --prune aum"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(kind, spec, hint):
    with pytest.raises(UnknownPluginError) as caught:
        registry.find(kind, spec)
    assert hint in str(caught.value)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_the_name_of_another_kind_gets_a_hint(kind):
    known = [info.spec for info in registry.list_plugins(kind)]
    assert f"{known[0]} is a" in names.unknown("thing", known[0], [], {kind: known})


def test_run_ids_and_configurations_do_not_depend_on_the_case():
    plain = {"method": "dsa", "parameterization": "hmn", "objective": "idc", "dataset": "digits", "protocol": "dsa"}
    typed = {"method": "DSA", "parameterization": "HMN", "objective": "dd-plugins/IDC", "dataset": "Digits"}
    rest = ["pruning=aum", "network=convnet", "protocol.network.name=lenet"]
    shouted = ["pruning=AUM", "network=ConvNet", "protocol.network.name=LeNet"]
    config, other = resolve(plain, rest), resolve({**typed, "protocol": "DSA"}, shouted)
    assert config == other
    assert compute_run_id(config, "0" * 16) == compute_run_id(other, "0" * 16)
    assert config.protocol.hash == other.protocol.hash


def test_the_path_of_a_data_set_keeps_its_case():
    assert resolve({"dataset": "FOLDER:./My/Pictures"}).dataset == "folder:./My/Pictures"
    assert split_spec("Folder:A") == ("Folder", "A")


def test_benchmarks_and_contenders_are_named_in_one_way():
    _, settings = split_settings(["NATIVE:benchmark.a=1", "benchmark.b=2"], ["Native", "native"])
    assert settings == {"native": {"a": 1, "b": 2}}
    found = contenders(["HMN", "Dsa/Mine"], ["hmn:steps=1", "DSA/mine:steps=2"])
    assert [(each.name, each.flags, each.assignments) for each in found] == [
        ("hmn", {"method": "hmn"}, ("steps=1",)),
        ("dsa/Mine", {"method": "dsa"}, ("steps=2",)),
    ]
    assert [each.name for each in matrix(["HMN"], ["DC", "dm"], [])] == ["hmn + dc", "hmn + dm"]


def test_a_bare_path_is_told_what_to_write_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures/train/cat", "hub/data", "flat"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "hub" / "data" / "train-0.parquet").touch()
    (tmp_path / "flat" / "train.parquet").touch()
    (tmp_path / "digits").mkdir()
    for spec, hint in {
        "./pictures": "folder:./pictures",
        "pictures": "folder:pictures",
        str(tmp_path / "hub"): f"parquet:{tmp_path / 'hub'}",
        "flat": "parquet:flat",
        "flat/train.parquet": "parquet:flat",
        "./nowhere": "folder:./nowhere",
        "fodler:pictures": "folder",
    }.items():
        with pytest.raises(UnknownPluginError, match="did you mean") as caught:
            load_dataset(spec)
        assert f"did you mean {hint}?" in str(caught.value)
    assert load_dataset("digits").spec.name == "digits"  # a folder of that name does not hide it


@pytest.mark.parametrize(
    ("assignment", "keys"),
    [
        ("lr=0.1", ["optimizer.lr", "protocol.train.lr", "parameterization.memory_lr"]),
        ("memory_lr=0.1", ["parameterization.memory_lr"]),
        ("optimiser.lr=0.1", ["optimizer.lr"]),
        ("epochs=1", ["protocol.train.epochs"]),
        ("wdth=1", ["network.width"]),
    ],
)
def test_a_setting_without_its_section_is_told_where_it_belongs(assignment, keys):
    with pytest.raises(ConfigError, match=f"unknown configuration key {assignment.partition('=')[0]}") as caught:
        resolve({"method": "hmn"}, [assignment])
    assert all(key in str(caught.value).partition("did you mean")[2] for key in keys)


def test_all_unknown_settings_are_named_at_once_and_many_are_cut():
    with pytest.raises(ConfigError, match=r"key aaa.*key bbb"):
        resolve({}, ["aaa=1", "bbb=2"])
    with pytest.raises(ConfigError, match="and 990 more") as caught:
        resolve({}, [], base={f"{'x' * 300}{k}": k for k in range(1000)})
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["export", "x", "--to", "hf", "--root", "y"], f"formats that export: {', '.join(exporting())}"),
        (["export", "x", "--to", "mtt", "--root", "y"], "mtt is for import only; formats that export: dc-bench"),
        (["export", "x", "--to", "parqet", "--root", "y"], "did you mean parquet?"),
        (["import", "x", "--from", "hf"], f"installed: {', '.join(i.spec for i in registry.list_plugins('format'))}"),
        (["run", "--method", "convnet"], "convnet is a network: --network convnet"),
        (["run", "--protocol", "dsaa"], "did you mean dsa"),
    ],
)
def test_suggestions_of_the_command(words, hint, capsys):
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1
