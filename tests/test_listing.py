"""dd-bench list: methods, protocols and formats besides plugins, and settings from a cache without importing torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_runs import command

from benchmark_adapters.cli import described
from dd_plugins import registry
from dd_plugins.engine.keys import flatten
from dd_plugins.engine.methods import load_method
from dd_plugins.engine.protocols import load_protocol

PLUGIN = '''
from pydantic import Field
from dd_plugins.api import Network, PluginConfig

class Mine(Network):
    """{about}"""

    api_version = 2

    class Config(PluginConfig):
        width: int = Field({width}, description="how [bold]wide[/bold] | \\x1b[31m")
'''


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_PLUGINS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


def names(kind):
    return [info.spec for info in registry.list_plugins(kind)]


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_kind_is_listed(kind, capsys):
    assert command("list", f"{kind}s".upper()) == 0
    lines = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:2] for line in lines] == [[kind, name] for name in names(kind)]
    assert all(line[4] in ("ok", "missing") and len(line[5]) > 5 for line in lines)


def test_no_line_shows_markup_of_a_docstring(capsys):
    assert command("list") == 0
    assert command("list", "dataset", "folder") == 0
    out = capsys.readouterr().out
    assert "``" not in out
    assert "folder:PATH" in out


@pytest.mark.parametrize("name", names("method"))
def test_a_method_shows_its_parts_and_every_setting_with_its_source(name, capsys):
    assert command("list", "method", name.upper()) == 0
    out = capsys.readouterr().out
    method = load_method(name)
    assert f"--param {method.parameterization} --objective {method.objective}" in out
    rows = [line.split()[0] for line in out.splitlines() if re.match(r"[a-z_]+(\.[a-z_]+)* ", line)]
    expected = [key for block in method.settings for key in (*block.values, *block.per_ipc)]
    assert [row for row in rows if row in set(expected)] == expected
    words = " ".join(out.split())
    assert all(block.source.split()[0] in words for block in method.settings)


@pytest.mark.parametrize("name", ["dsa", "quick", "hmn-steps"])
def test_a_protocol_shows_its_values(name, capsys):
    assert command("list", "protocol", name) == 0
    rows = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:] if line.startswith("protocol."))
    values = flatten(load_protocol(name).model_dump(mode="json"))
    assert rows["protocol.train.epochs"] == str(values["train.epochs"])
    assert rows["protocol.network.name"] == values["network.name"]
    assert yaml.safe_load(rows["protocol.train.match_updates"]) == values["train.match_updates"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["hmn"], "dd-bench list method hmn"),
        (["paramterization"], "did you mean parameterization?"),
        (["method", "hmnn"], "did you mean hmn?"),
        (["protocol", "dsaa"], "did you mean dsa"),
        (["format", "parqet"], "did you mean parquet?"),
        (["objective", "pixle"], "unknown objective 'pixle'"),
    ],
)
def test_near_matches(words, hint, capsys):
    assert command("list", *words) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["parameterization", "HMN"], ["objective", "mtt"], ["protocol", "dsa-steps"], ["method", "hmn"], []]
)
def test_the_second_call_imports_no_torch(words):
    """Nor any other of the large libraries, whose import takes most of the time."""
    script = (
        "import sys\n"
        "from benchmark_adapters.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "print('modules', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    outputs = []
    for _ in range(2):
        call = [sys.executable, "-c", script, "list", *words]
        outputs.append(subprocess.run(call, capture_output=True, text=True, check=True, timeout=100).stdout)
    (first, _), (second, modules) = (out.rsplit("modules", 1) for out in outputs)
    assert first == second
    assert not {"torch", "torchvision", "numpy", "matplotlib", "kornia"} & set(modules.split())


def _found(kind, name):
    """What is shown, and whether the plugin was read for it."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        read = described._read
        patch.setattr(described, "_read", lambda *args: calls.append(args) or read(*args))
        return described.described(kind, name), bool(calls)


def test_the_cache_is_used_until_a_source_changes(tmp_path, monkeypatch, cache):
    package = tmp_path / "site"
    info = package / "dd_mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dd-mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dd_plugins.network]\nmine = dd_mine:Mine\n")
    source = package / "dd_mine.py"
    monkeypatch.syspath_prepend(package)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # sources of one size and second would look the same
    for width in (16, 32):
        source.write_text(PLUGIN.format(about=f"Width {width}.", width=width))
        sys.modules.pop("dd_mine", None)
        registry._load_installed.cache_clear()  # as in a new process
        for known in (False, True):
            found, read = _found("network", "mine")
            assert (found.about, found.rows[0][:2]) == (f"Width {width}.", ["network.width", str(width)])
            assert read != known
    sys.modules.pop("dd_mine", None)
    assert len(list((cache / "listing").iterdir())) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"about": 1, "rows": [], "sources": {}}']
)
def test_a_damaged_cache_is_made_anew(content, cache):
    expected, _ = _found("network", "lenet")
    (file,) = (cache / "listing").iterdir()
    file.write_bytes(content)
    assert _found("network", "lenet") == (expected, True)
    assert _found("network", "lenet") == (expected, False)


def test_cells_of_a_wrong_type_are_not_shown(cache):
    expected, _ = _found("network", "lenet")
    (file,) = (cache / "listing").iterdir()
    content = json.loads(file.read_text())
    for damaged in ({**content, "rows": [["a", "b"]]}, {**content, "rows": [[1, 2, 3]]}, {**content, "sources": []}):
        file.write_text(json.dumps(damaged))
        assert _found("network", "lenet") == (expected, True)


def test_a_cache_that_cannot_be_written_is_no_error(cache, capsys):
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        assert command("list", "network", "convnet") == 0
    assert "network.width" in capsys.readouterr().out


def test_every_source_of_a_setting_is_watched(cache):
    """A default may come from any module of the package: ``pruning`` takes its choices from others."""
    _found("pruning", "aum")
    (file,) = (cache / "listing").iterdir()
    sources = {Path(path).name for path in json.loads(file.read_text())["sources"]}
    assert {"strategies.py", "selectors.py", "config.py", "pruning.py"} <= sources


def test_texts_of_a_plugin_are_escaped(tmp_path, monkeypatch, capsys):
    (tmp_path / "dd_loud.py").write_text(PLUGIN.format(about="[red]Loud[/red] \\x1b[31m", width=1))
    monkeypatch.syspath_prepend(tmp_path)
    with registry.trusted("dd_loud:Mine"):
        assert command("list", "network", "dd_loud:Mine") == 0
    out = capsys.readouterr().out
    sys.modules.pop("dd_loud", None)
    assert "\x1b" not in out
    assert "[red]Loud[/red] \\x1b[31m" in out
    assert "how [bold]wide[/bold] | \\x1b[31m" in out
