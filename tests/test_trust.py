"""Files of others never decide what is imported: module:Class counts only where an argument of the command names it."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_runs import TINY, command, run, start

from dd_plugins import registry
from dd_plugins.api import PluginLoadError, UntrustedPluginError

EVIL = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
from dd_plugins.networks.convnet import ConvNet as Net
from dd_plugins.parameterizations.pixel import Pixel
from dd_plugins.objectives.dm import DM
from dd_plugins.pruning.strategies import AUM
from dd_plugins.datasets.digits import Digits
"""
CLASSES = {
    "parameterization.name": "evil_mod:Pixel",
    "objective.name": "evil_mod:DM",
    "network.name": "evil_mod:Net",
    "protocol.network.name": "evil_mod:Net",
    "pruning.name": "evil_mod:AUM",
    "dataset": "evil_mod:Digits",
}
READS_A_FOLDER = [
    ["eval", "."],
    ["eval", ".", "--network", "mlp"],
    ["eval", ".", "--metric", "crfd"],
    ["eval", ".", "--benchmark", "native"],
    ["eval", "synthetic.safetensors", "--trials", "1", "--no-full-data", *(f"--set={text}" for text in TINY[-3:-1])],
    ["export", ".", "--to", "pt", "--root", "exported"],
    ["prune", ".", "--keep", "0.5"],
    ["prune-study", "."],
    ["run", "--config", "config.yaml"],
    ["run", "--config", "config.yaml", "--dry-run"],
    ["profile", "--config", "config.yaml", "--repeat", "1"],
    ["show", "."],
    ["table", "."],
    ["plot", ".", "--to", "curve.png"],
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    record = run(out, {"method": "dm", "steps": 2, "seed": 3}, ["network.width=8", *TINY[-3:]], full_data=False)
    return out / record["id"]


@pytest.fixture
def foreign(finished, tmp_path, monkeypatch):
    """A copy of a run folder with a module in it that leaves a trace when it is imported; the current folder."""
    monkeypatch.setattr(registry, "_trusted", set())
    folder = tmp_path / "foreign"
    shutil.copytree(finished, folder)
    (folder / "evil_mod.py").write_text(EVIL)
    monkeypatch.chdir(folder)
    return folder


def _put(values, key, name):
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
    values[last] = name


def _name_in_files(folder, key):
    record = json.loads((folder / "record.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for values in (record["config"], config):
        _put(values, key, CLASSES[key])
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if key == "parameterization.name":
        file = folder / "synthetic.safetensors"
        with safe_open(file, "pt") as opened:
            tensors, header = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
        header["dd_plugins"] = json.dumps({**json.loads(header["dd_plugins"]), "plugin": CLASSES[key]})
        save_file(tensors, file, header)


@pytest.mark.parametrize("words", READS_A_FOLDER, ids=" ".join)
@pytest.mark.parametrize("key", CLASSES)
def test_no_command_imports_what_a_folder_names(foreign, key, words, capsys):
    _name_in_files(foreign, key)
    command(*words, "--out", "runs") if words[0] not in ("table", "plot") else command(*words)
    assert not (foreign / "imported").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("key", [key for key in CLASSES if key != "pruning.name"])
def test_the_refusal_names_the_code_and_what_to_do(foreign, key, capsys):
    _name_in_files(foreign, key)
    assert command("run", "--config", "config.yaml", "--out", "runs") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"--trust {CLASSES[key]}" in line
    assert not (foreign / "runs").exists()


def test_code_that_an_argument_names_is_imported_from_the_current_folder(foreign, capsys):
    _name_in_files(foreign, "network.name")
    words = ["run", "--config", "config.yaml", "--out", "runs", "--no-full-data"]
    assert command(*words, "--trust", "evil_mod:Other") == 2
    assert not (foreign / "imported").exists()
    assert command(*words, "--trust", "evil_mod:Net") == 0, capsys.readouterr().err
    assert (foreign / "imported").exists()


def test_a_process_of_its_own_in_a_foreign_folder(foreign):
    """Neither the module that the record names nor one that has the name of a library that is not installed."""
    _name_in_files(foreign, "protocol.network.name")
    for library in ("ddranking", "diffusers", "timm"):
        (foreign / f"{library}.py").write_text(EVIL)
    process = start("eval", ".", "--dataset", "digits", "--network", "mlp", "--no-full-data", cwd=foreign)
    _, error = process.communicate(timeout=100)
    assert not (foreign / "imported").exists()
    assert "Traceback" not in error


@pytest.mark.parametrize("name", [".lock", "trials.jsonl", "log.txt", "record.json", "stages.json", "preview.png"])
@pytest.mark.parametrize("words", [["eval", "foreign/run", "--network", "mlp"], ["run", "--config", "config.yaml"]])
def test_a_link_in_a_foreign_folder_leads_no_write_elsewhere(finished, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    folder, victim = tmp_path / "foreign" / finished.name, tmp_path / "victim"
    shutil.copytree(finished, folder)
    shutil.copy(folder / "config.yaml", tmp_path / "config.yaml")
    victim.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(victim)
    before = victim.read_bytes()
    sets = [f"--set={text}" for text in TINY[-2:]] if words[0] == "eval" else []
    words = [word.replace("foreign/run", str(folder)) for word in words]
    command(*words, *sets, "--no-full-data", "--out", "foreign", "--device", "cpu")
    assert victim.read_bytes() == before


def test_the_option_takes_classes_alone(foreign, capsys):
    assert command("eval", ".", "--trust", "evil_mod") == 2
    assert "expected module:Class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--param", "a:B"], ["a:B"]),
        (["--param=a.b:C.D"], ["a.b:C.D"]),
        (["--set", "network.name=a:B"], ["a:B"]),
        (["--set=protocol.network={name: a:B, width: 8}"], ["a:B"]),
        (["--params", "pixel,a:B,c:D"], ["a:B", "c:D"]),
        (["--dataset", "a:B:some/path"], ["a:B"]),
        (["--set", "mtt:objective.experts=10"], []),
        (["--dataset", "folder:data", "--dataset=parquet:data.small"], []),
        (["eval", "runs/0123", "--set", "optimizer.lr=1e-3", "--out", "C:/runs"], []),
    ],
)
def test_classes_named_in_arguments(arguments, named):
    assert registry.classes_named_in(arguments) == named


def test_trust_ends_with_its_scope():
    spec = "no_such_module_anywhere:Net"
    with registry.trusted(spec), pytest.raises(PluginLoadError, match="cannot be imported"):
        registry.load("network", spec)
    with pytest.raises(UntrustedPluginError, match=f"--trust {spec}"):
        registry.load("network", spec)


def test_a_class_of_the_running_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from dd_plugins import registry\n"
        "from dd_plugins.networks.convnet import ConvNet\n"
        "class Mine(ConvNet):\n"
        "    api_version = 2\n"
        "with registry.trusted('__main__:Mine'):\n"
        "    assert registry.load('network', '__main__:Mine') is Mine\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
