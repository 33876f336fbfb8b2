"""Packages of third parties: written by `dd-bench new`, built, installed, listed, checked and run."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny_runs import command

from benchmark_adapters.cli.new import kinds
from dd_plugins.testing import check_plugin
from dd_plugins.testing.parameterization import CHECKS

ROOT = Path(__file__).parents[1]


def sh(*words, cwd, env=None):
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_are_templates_for_these_kinds():
    assert {"parameterization", "objective", "pruning", "benchmark", "dataset", "network", "method"} <= set(kinds())


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "method"])
def test_every_template_is_a_plugin_that_keeps_its_contract(kind, tmp_path, monkeypatch, capsys):
    name = f"new-{kind}"
    assert command("new", kind, name, "--to", tmp_path) == 0
    folder = tmp_path / f"dd-{name}"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    module = f"dd_new_{kind}"
    assert files == ["README.md", f"{module}.py", "pyproject.toml", "tests/test_conformance.py"]
    assert f"cd {folder} && pip install -e . && dd-bench check {name}" in capsys.readouterr().out
    assert "$" not in (folder / "README.md").read_text()
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {f"dd_plugins.{kind}": {name: f"{module}:New{kind.capitalize()}"}}
    text = (folder / f"{module}.py").read_text()
    assert len(text.splitlines()) <= 50
    monkeypatch.syspath_prepend(folder)
    results = check_plugin(f"{module}:New{kind.capitalize()}", kind)
    assert [result.reason for result in results if result.status not in ("passed", "skipped")] == []
    sys.modules.pop(module, None)


def test_an_unknown_kind_is_one_line(tmp_path, capsys):
    assert command("new", "objectiv", "mine", "--to", tmp_path) == 2
    assert "unknown kind 'objectiv'; did you mean objective?" in capsys.readouterr().err


def test_a_method_is_installed_checked_and_run(tmp_path):
    """Installed into a folder on the path."""
    assert command("new", "method", "sharp", "--to", tmp_path) == 0
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    sh(*pip, "--target", tmp_path / "site", tmp_path / "dd-sharp", cwd=tmp_path)
    paths = [str(tmp_path / "site"), str(ROOT)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}
    bench = [sys.executable, "-c", "from benchmark_adapters.cli.main import run; run()"]
    listed = sh(*bench, "list", "method", cwd=tmp_path, env=env)
    (line,) = [line for line in listed.splitlines() if "sharp" in line]
    assert line.split()[:5] == ["method", "dd-sharp/sharp", "dd-sharp", "0.1.0", "ok"]
    assert "4 passed, 0 failed, 0 skipped" in sh(*bench, "check", "sharp", cwd=tmp_path, env=env)
    sets = ["network.width=8", "protocol.network.width=8", "protocol.train.epochs=5", "protocol.trials=2"]
    words = ["run", "--method", "sharp", "--steps", "2", "--no-full-data", *(f"--set={text}" for text in sets)]
    assert "accuracy on the test set" in sh(*bench, *words, cwd=tmp_path, env=env)
    tested = sh(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path / "dd-sharp", env=env)
    assert "4 passed" in tested


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["parameterization", "LowRank"], "'LowRank' is no name for a plugin"),
        (["parameterization", "low--rank"], "is no name for a plugin"),
        (["parameterization", "hmn"], "hmn is the name of a built-in parameterization"),
        (["network", "hmn"], "hmn is the name of a built-in parameterization"),
        (["network", "none"], "'none' cannot be a plugin's name"),
        (["network", "plugins"], "'plugins' cannot be a plugin's name"),
    ],
)
def test_names_that_cannot_be(words, told, tmp_path, capsys):
    assert command("new", *words, "--to", tmp_path) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, capsys):
    assert command("new", "objective", "mine", "--to", tmp_path) == 0
    file = tmp_path / "dd-mine/dd_mine.py"
    file.write_text("# mine\n")
    assert command("new", "objective", "mine", "--to", tmp_path) == 2
    assert "is there already; nothing was written" in capsys.readouterr().err
    assert file.read_text() == "# mine\n"


def test_a_package_is_installed_checked_and_run(tmp_path):
    """In a fresh environment that only borrows the libraries; this project comes from its wheel."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    sh(*build, "-w", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("dd_plugins-*.whl")
    sh(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    site = Path(sh(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip())
    # The libraries of this environment, but for this project itself, whose editable install is not followed here.
    (site / "borrowed.pth").write_text("\n".join(libraries) + "\n")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"COLUMNS": "200"}
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed"]
    sh(*pip, wheel, cwd=tmp_path, env=env)
    bench = tmp_path / "venv/bin/dd-bench"
    sh(bench, "new", "parameterization", "lowrank", cwd=tmp_path, env=env)
    sh(*build, "-w", tmp_path, tmp_path / "dd-lowrank", cwd=tmp_path)
    sh(*pip, *tmp_path.glob("dd_lowrank-*.whl"), cwd=tmp_path, env=env)
    where = sh(python, "-c", "import dd_plugins; print(dd_plugins.__file__)", cwd=tmp_path, env=env)
    assert str(site) in where  # the wheel, not this checkout
    listed = sh(bench, "list", "parameterization", cwd=tmp_path, env=env)
    (line,) = [line for line in listed.splitlines() if "lowrank" in line]
    assert line.split()[:5] == ["parameterization", "dd-lowrank/lowrank", "dd-lowrank", "0.1.0", "ok"]
    checked = sh(bench, "check", "lowrank", cwd=tmp_path, env=env)
    assert f"{len(CHECKS) - 1} passed, 0 failed, 1 skipped" in checked  # it has no stages
    sets = ["network.width=8", "objective.network_updates=1", "objective.max_updates=10", "objective.batch_real=8"]
    sets += ["protocol.network.width=8", "protocol.train.epochs=5", "protocol.trials=2"]
    words = ["run", "--param", "lowrank", "--ipc", "2", "--steps", "3", *(f"--set={text}" for text in sets)]
    ran = sh(bench, *words, cwd=tmp_path, env=env)
    assert "lowrank" in ran
    assert "accuracy on the test set" in ran
