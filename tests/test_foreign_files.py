"""Methods and protocols of other distributions: YAML files in a package that is installed in a folder."""

import sys

import pytest
from tiny_runs import PROTOCOL, command, run

from benchmark_adapters.runs.compare import contenders
from dd_plugins import registry
from dd_plugins.api import AmbiguousPluginError, PluginLoadError, UnknownPluginError
from dd_plugins.engine.config import resolve
from dd_plugins.engine.methods import choose_method, load_method
from dd_plugins.engine.protocols import load_protocol
from dd_plugins.testing import check_plugin, checks_for

METHOD = """
summary: mean features of a network of its own
parameterization: pixel
objective: dm
settings:
  - source: made up
    set: {steps: 3, network.name: tiny, protocol.name: short, parameterization.init: noise}
  - for: {dataset: digits, ipc: 2}
    source: made up
    set: {steps: 4}
"""
PROTOCOL_FILE = """
summary: dsa with five epochs
extends: dsa
network: {name: tiny}
train: {epochs: 5}
trials: 2
"""
NETWORK = '''
from dd_plugins.networks.mlp import MLP

class Tiny(MLP):
    """A small network."""

    api_version = 2
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution whose package holds files and the network ``tiny``; the package raises if it is run."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def _install(distribution, methods=(), protocols=()):
        module = distribution.replace("-", "_")
        modules.append(module)
        info = tmp_path / f"{module}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
        groups = {"method": f"files = {module}.methods", "protocol": f"files = {module}.protocols"}
        groups["network"] = f"tiny = {module}.net:Tiny"
        (info / "entry_points.txt").write_text("".join(f"[dd_plugins.{k}]\n{v}\n" for k, v in groups.items()))
        for folder, found in (("methods", dict(methods)), ("protocols", dict(protocols))):
            (tmp_path / module / folder).mkdir(parents=True)
            for name, text in found.items():
                (tmp_path / module / folder / f"{name}.yaml").write_text(text)
        (tmp_path / module / "__init__.py").write_text("")
        (tmp_path / module / "methods" / "__init__.py").write_text("raise RuntimeError('this is not imported')")
        (tmp_path / module / "net.py").write_text(NETWORK)
        return tmp_path / module

    yield _install
    for module in [name for name in sys.modules if name.partition(".")[0] in modules]:
        sys.modules.pop(module)


def test_they_are_found_described_and_resolved(install, capsys):
    install("dd-mine", {"sharp": METHOD}, {"short": PROTOCOL_FILE})
    (info,) = [info for info in registry.list_plugins("method") if info.name == "sharp"]
    assert (info.distribution, info.version, info.value) == ("dd-mine", "1.2.3", "dd_mine.methods:sharp")
    assert info.status() == ("ok", "mean features of a network of its own")
    assert "dd_mine" not in sys.modules
    for name in ("sharp", "SHARP", "dd-mine/sharp"):
        config = resolve({"method": name, "dataset": "digits", "ipc": 2})
        assert (config.method, config.steps) == ("dd-mine/sharp", 4)
        assert (config.network.name, config.protocol.network.name) == ("dd-mine/tiny", "dd-mine/tiny")
        assert (config.protocol.name, config.protocol.train.epochs) == ("dd-mine/short", 5)
    protocol, dsa = load_protocol("short"), load_protocol("dsa")
    assert protocol.train == dsa.train.model_copy(update={"epochs": 5})
    assert protocol.hash != dsa.hash
    assert command("list", "method", "sharp") == 0
    assert "dd-mine/sharp: mean features" in capsys.readouterr().out
    assert command("list", "protocol", "short") == 0
    assert "dd-mine/short: dsa with five epochs" in capsys.readouterr().out
    assert command("run", "--method", "shrap", "--dry-run") == 2
    assert "did you mean dd-mine/sharp?" in capsys.readouterr().err


def test_a_run_records_its_origin(install, tmp_path):
    install("dd-mine", {"sharp": METHOD.replace("network.name: tiny, protocol.name: short, ", "")})
    tiny = ["network.width=8", "objective.batch_real=8", *PROTOCOL]
    record = run(tmp_path / "runs", {"method": "sharp", "steps": 2}, tiny)
    assert record["config"]["method"] == "dd-mine/sharp"
    found = {key: record["plugins"]["method"][key] for key in ("distribution", "version", "entry_point")}
    assert found == {"distribution": "dd-mine", "version": "1.2.3", "entry_point": "dd_mine.methods:sharp"}
    assert run(tmp_path / "runs", {"method": "hmn"})["plugins"]["method"]["distribution"] == "dd-plugins"


def test_built_in_names_are_reserved_and_equal_ones_are_refused(install):
    install("dd-one", {"dsa": METHOD, "twice": METHOD}, {"short": PROTOCOL_FILE})
    install("dd-two", {"twice": METHOD}, {"short": PROTOCOL_FILE})
    assert load_method("dsa").objective == "dsa"
    assert load_method("dd-one/dsa").objective == "dm"
    with pytest.raises(AmbiguousPluginError, match="dd-one/twice or dd-two/twice"):
        load_method("twice")
    own = load_method("dd-two/twice").values("digits", 1)  # the plugins of its own distribution
    assert (own["network.name"], own["protocol.name"]) == ("dd-two/tiny", "dd-two/short")


def test_installing_a_method_changes_no_run_of_built_in_parts(install):
    before = choose_method(None, "hmn", "dm")
    better = METHOD.replace("parameterization: pixel", "parameterization: hmn")
    install("aa-mine", {"better": better})
    assert choose_method(None, "hmn", "dm") == before
    assert choose_method(None, "hmn", "aa-mine/other").name == "hmn"


def test_a_method_and_its_label_in_a_comparison(install):
    install("dd-mine", {"sharp": METHOD})
    found = [(each.name, each.flags["method"]) for each in contenders(["sharp", "DD-mine/sharp/Mine", "dsa/x"], [])]
    assert found == [("dd-mine/sharp", "dd-mine/sharp"), ("dd-mine/sharp/Mine", "dd-mine/sharp"), ("dsa/x", "dsa")]
    with pytest.raises(UnknownPluginError, match="unknown method 'dd-mine'"):
        contenders(["dd-mine/other"], [])


DAMAGED = {
    "syntax": ("summary: [", "not valid YAML"),
    "list": ("- 1", "expected a mapping"),
    "empty": ("", "expected a mapping"),
    "parts": ("summary: nothing else", "objective"),
    "blocks": (METHOD.replace("source: made up", "sauce: made up"), "settings"),
    "named": (f"name: other{METHOD}", "has the name of its file"),
    "keys": (f"{METHOD}\ncolour: blue", "colour"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_methods_are_broken_and_leave_others_alone(name, install, capsys):
    text, told = DAMAGED[name]
    install("dd-mine", {"bad": text, "sharp": METHOD}, {"short": PROTOCOL_FILE})
    with pytest.raises(PluginLoadError, match=r"method 'bad' \(dd-mine 1\.2\.3\)") as caught:
        load_method("bad")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert resolve({"method": "sharp"}).method == "dd-mine/sharp"
    assert choose_method(None, "pixel", "dd-mine/other")
    assert command("list", "method") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "dd-mine/bad" in line]
    assert line.split()[4] == ("ok" if name in ("named", "keys") else "broken")  # the rest shows when it is loaded
    if name not in ("named", "keys"):
        assert command("list", "method", "bad") == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("summary: x\nextends: [1]", "expected the name of a protocol"),
        ("summary: x\nextends: bad", "extends itself"),
        ("summary: x\nextends: nothing", "unknown protocol 'nothing'"),
        ("summary: x\nextends: dsa\ntrain: 3", "train"),
        ("summary: x\nextends: dsa\ntrials: many", "trials = 'many'"),
    ],
)
def test_damaged_protocols(text, told, install, capsys):
    install("dd-mine", {}, {"bad": text})
    assert command("run", "--protocol", "bad", "--dry-run") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert command("list", "protocol", "bad") == 2
    assert load_protocol("dsa").name == "dsa"


WRONG = {
    "method": {
        "summary": METHOD.replace("mean features of a network of its own", "short"),
        "parts_are_installed": METHOD.replace("objective: dm", "objective: nothing"),
        "settings_have_sources": METHOD.replace(
            "source: made up\n    set: {steps: 3", "source: ''\n    set: {steps: 3"
        ),
        "settings_are_valid": METHOD.replace("steps: 4", "parameterization.size: 4"),
    },
    "protocol": {
        "summary": PROTOCOL_FILE.replace("dsa with five epochs", "short"),
        "source": f"{PROTOCOL_FILE}\nsource: ''",
        "settings_are_valid": PROTOCOL_FILE.replace("name: tiny", "name: tiny, no_such_setting: 3"),
    },
}


@pytest.mark.parametrize(("kind", "check"), [(kind, check) for kind, found in WRONG.items() for check in found])
def test_a_wrong_file_fails_its_check(kind, check, install, capsys):
    files = {"method": {"sharp": METHOD}, "protocol": {"short": PROTOCOL_FILE}}
    name = next(iter(files[kind]))
    install("dd-mine", files["method"] | ({"odd": WRONG[kind][check]} if kind == "method" else {}),
            files["protocol"] | ({"odd": WRONG[kind][check]} if kind == "protocol" else {}))  # fmt: skip
    assert {result.status for result in check_plugin(name, kind)} == {"passed"}
    failed = {result.check.name: result.reason for result in check_plugin("odd") if result.status == "failed"}
    assert check in failed
    assert set(failed) <= {check, "settings_are_valid"}
    assert all("\n" not in reason and "odd" in reason for reason in failed.values())
    assert [each.name for each in checks_for("odd")] == list(WRONG[kind])


def test_an_entry_point_without_files_is_broken(install, capsys):
    folder = install("dd-mine")
    assert command("list", "protocol") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "dd-mine/files" in line]
    assert "no YAML file in dd_mine.protocols" in line
    with pytest.raises(PluginLoadError, match="no YAML file in"):
        load_protocol("files")
    (folder / "protocols" / ".hidden.yaml").write_text("x")
    assert [info.name for info in registry.list_plugins("protocol") if info.distribution == "dd-mine"] == ["files"]
