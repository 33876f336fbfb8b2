"""The registry: real distributions on disk, read as metadata; a class is imported only when it is named."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from tiny_runs import command

from dd_plugins import registry
from dd_plugins.api import AmbiguousPluginError, Parameterization, PluginLoadError, UnknownPluginError
from dd_plugins.sources import source_of

GOOD = '''
from dd_plugins.api import Parameterization

class LowRank(Parameterization):
    """Stores two factors.

    More about it."""

    api_version = 2

    @classmethod
    def shapes(cls, data, counts, config): return {}
    def reset(self, generator, real): pass
    def _decode(self, index): return index
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution as pip does, and puts its folder at the front of the path."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def _install(distribution, names, source=GOOD, version="1.2.3", kind="parameterization", cls="LowRank"):
        module = distribution.replace("-", "_")
        modules.append(module)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = "".join(f"{name} = {module}:{cls}\n" for name in names)
        (info / "entry_points.txt").write_text(f"[dd_plugins.{kind}]\n{lines}")
        if source is not None:
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        return module

    yield _install
    for module in modules:
        sys.modules.pop(module, None)


def _listed(name, kind="parameterization"):
    return [info for info in registry.list_plugins(kind) if info.name == name]


def test_listing_imports_no_torch_and_is_quick():
    script = """
        import json, sys
        from dd_plugins import registry
        rows = [(k, i.name, *i.status()) for k in registry.KINDS for i in registry.list_plugins(k)]
        print(json.dumps([rows, sorted({m.partition(".")[0] for m in sys.modules})]))
    """
    begun = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True, timeout=60)
    assert time.perf_counter() - begun < 5  # importing torch alone takes longer on a busy core
    rows, modules = json.loads(out.stdout)
    assert ["parameterization", "hmn"] in [row[:2] for row in rows]
    assert not {"torch", "torchvision", "numpy", "scipy"} & set(modules)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_built_in_is_ok_described_and_loads(kind):
    own = [info for info in registry.list_plugins(kind) if info.distribution == "dd-plugins"]
    if kind != "pruning":
        assert own
    for info in own:
        status, line = info.status()
        if status == "missing":  # an extra that is not installed
            assert line.startswith("pip install 'dd-plugins[")
            continue
        assert status == "ok", (info, line)
        assert len(line) > 15
        assert "\n" not in line
        assert info.spec == info.name
        if kind in registry.FILES:
            continue
        loaded = registry.load(kind, info.name)
        assert f"{loaded.__module__}:{loaded.__qualname__}" == info.value


def test_unknown_name_tells_near_matches_and_what_is_installed():
    with pytest.raises(UnknownPluginError) as caught:
        registry.find("parameterization", "pixle")
    assert "'pixle'" in str(caught.value)
    assert "did you mean pixel?" in str(caught.value)
    assert "hmn, idc, pixel" in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_name_without_a_near_match_makes_no_guess():
    with pytest.raises(UnknownPluginError, match=r"unknown network 'zzzzzz' \(installed: alexnet, convnet"):
        registry.find("network", "zzzzzz")


def test_third_party_is_listed_and_loads_under_both_names(install):
    install("dd-lowrank", ["lowrank"])
    (info,) = _listed("lowrank")
    assert (info.distribution, info.version, info.value) == ("dd-lowrank", "1.2.3", "dd_lowrank:LowRank")
    assert info.status() == ("ok", "Stores two factors.")
    assert info.spec == "dd-lowrank/lowrank"
    assert "dd_lowrank" not in sys.modules
    short, full = (registry.load("parameterization", spec) for spec in ("lowrank", "dd-lowrank/lowrank"))
    assert short is full
    assert issubclass(short, Parameterization)


def test_record_hashes_the_source(install, tmp_path):
    import hashlib

    install("dd-lowrank", ["lowrank"])
    content = (tmp_path / "dd_lowrank.py").read_bytes()
    assert registry.find("parameterization", "lowrank").record() == {
        "name": "lowrank",
        "distribution": "dd-lowrank",
        "version": "1.2.3",
        "entry_point": "dd_lowrank:LowRank",
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _needing(line):
    return GOOD.replace("    def reset", f"    {line}\n    def reset")


@pytest.mark.parametrize("line", ['needs = "no_such_module"', 'needs: ClassVar[str] = "no_such_module"'])
def test_a_plugin_that_needs_a_module_is_listed_with_what_to_install(install, line):
    install("dd-lowrank", ["lowrank"], _needing(line))
    (info,) = _listed("lowrank")
    assert info.status() == ("missing", "pip install 'dd-lowrank[no_such_module]'")


def test_a_plugin_whose_module_is_there_is_ok(install):
    install("dd-lowrank", ["lowrank"], _needing('needs = "json"'))
    (info,) = _listed("lowrank")
    assert info.status() == ("ok", "Stores two factors.")


def test_two_distributions_with_one_name_are_told_apart(install):
    install("dd-one", ["twice"])
    install("dd-two", ["twice"])
    with pytest.raises(AmbiguousPluginError, match="dd-one/twice or dd-two/twice") as caught:
        registry.load("parameterization", "twice")
    assert caught.value.exit_code == 2
    assert registry.load("parameterization", "dd-two/twice").__module__ == "dd_two"
    with pytest.raises(UnknownPluginError):
        registry.find("parameterization", "dd-three/twice")


def test_a_built_in_name_is_reserved(install):
    install("dd-shadow", ["pixel"])
    assert registry.find("parameterization", "pixel").distribution == "dd-plugins"
    assert registry.load("parameterization", "pixel").__module__ == "dd_plugins.parameterizations.pixel"
    assert registry.load("parameterization", "dd-shadow/pixel").__module__ == "dd_shadow"
    assert [info.spec for info in _listed("pixel")] == ["pixel", "dd-shadow/pixel"]


@pytest.mark.parametrize(
    ("source", "status", "cause"),
    [
        ("class LowRank(:\n", "broken", SyntaxError),
        ("import there_is_no_such_module\n\nclass LowRank:\n    api_version = 2\n", "ok", ModuleNotFoundError),
        ("from dd_plugins.api import NoSuchName\n", "ok", ImportError),
        ("raise RuntimeError('bad\\nluck')\n", "ok", RuntimeError),
        ("import sys\nsys.exit('no licence')\n", "ok", SystemExit),
        ("class Other: ...\n", "ok", AttributeError),
        (None, "broken", ModuleNotFoundError),
    ],
)
def test_a_broken_plugin_is_listed_and_fails_when_chosen(install, source, status, cause):
    module = install("dd-broken", ["cracked"], source)
    (info,) = _listed("cracked")
    assert info.status()[0] == status
    assert registry.load("parameterization", "pixel")  # the others are unharmed
    with pytest.raises(PluginLoadError) as caught:
        registry.load("parameterization", "cracked")
    for part in ("'cracked'", "dd-broken", "1.2.3", f"{module}:LowRank", cause.__name__):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, cause)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("source", ["class LowRank:\n    api_version = 2\n", "LowRank = 3\n"])
def test_wrong_base_class(install, source):
    install("dd-wrong", ["wrong"], source)
    with pytest.raises(PluginLoadError, match=r"dd-wrong 1\.2\.3.*expected a subclass of Parameterization, but found"):
        registry.load("parameterization", "wrong")


def test_a_plugin_of_another_kind_is_refused(install):
    install("dd-lowrank", ["lowrank"], kind="objective")
    with pytest.raises(PluginLoadError, match="expected a subclass of MatchingObjective"):
        registry.load("objective", "lowrank")


def test_newer_api_version_is_refused(install):
    install("dd-new", ["new"], GOOD.replace("api_version = 2", "api_version = 3"))
    with pytest.raises(PluginLoadError, match="written for API version 3, but this release offers 2"):
        registry.load("parameterization", "new")


PARTS = (
    GOOD.replace("class LowRank", "class Base")
    + """

class LowRank(Base):
    '''Two factors.'''

"""
)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("    api_version = '1'\n", "written for API version '1', but this release offers 2"),
        ("    api_version = True\n", "written for API version True, but this release offers 2"),
        ("    api_version = 2.0\n", "written for API version 2.0, but this release offers 2"),
        ("    rank = 1\n", "api_version"),  # inherited alone
        ("    api_version = 2\n    Config = 5\n", "Config"),
    ],
)
def test_what_a_class_declares_is_listed_as_broken_and_refused(install, body, told):
    install("dd-odd", ["odd"], PARTS + body)
    (info,) = _listed("odd")
    status, line = info.status()
    assert status == "broken"
    assert told in line
    with pytest.raises(PluginLoadError, match=r"dd-odd 1\.2\.3") as caught:
        registry.load("parameterization", "odd")
    assert told in str(caught.value)
    assert registry.load("parameterization", "pixel")


def test_a_config_that_is_no_plugin_config_is_refused(install):
    install("dd-odd", ["odd"], PARTS + "    api_version = 2\n    class Config: ...\n")
    with pytest.raises(PluginLoadError, match="expected its Config to be a subclass of PluginConfig"):
        registry.load("parameterization", "odd")


def test_a_constructor_that_fails_is_named_with_the_place(install, tmp_path):
    module = install(
        "dd-odd", ["odd"], PARTS + "    api_version = 2\n    def __init__(self, *args):\n        {}['key']\n"
    )
    line = (tmp_path / f"{module}.py").read_text().splitlines().index("        {}['key']") + 1
    with pytest.raises(
        PluginLoadError, match=rf"'odd' cannot be constructed: KeyError: 'key' \({module}.py, line {line}\)"
    ):
        registry.create("parameterization", "odd", 1, 2)


@pytest.mark.parametrize("content", [b"[dd_plugins.network]\nno equals sign\n", b"\xff\xfe[x]\na = b:c\n"])
def test_damaged_metadata_of_one_distribution_leaves_the_others(install, tmp_path, content, capsys):
    install("dd-damaged", ["damaged"], kind="network")
    install("dd-lowrank", ["lowrank"])
    info = tmp_path / "dd_damaged-1.2.3.dist-info"
    (info / "entry_points.txt").write_bytes(content)
    assert registry.load("parameterization", "lowrank").__name__ == "LowRank"
    assert registry.load("network", "convnet")
    ((place, why),) = registry.damaged_distributions()
    assert place == str(info)
    assert why
    assert command("list", "network") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "convnet" in shown
    assert "dd_damaged-1.2.3.dist-info" in shown


def test_no_distribution_is_damaged():
    assert registry.damaged_distributions() == []


def test_module_and_class_need_no_packaging(tmp_path, monkeypatch):
    (tmp_path / "under_development.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    info = registry.find("parameterization", "under_development:LowRank")
    assert info.spec == "under_development:LowRank"
    with registry.trusted(info.spec):
        assert registry.load("parameterization", info.spec).__name__ == "LowRank"
    del sys.modules["under_development"]


@pytest.mark.parametrize("spec", ["no_such_module:Class", ":Class", "json:", "json:decoder.JSONDecoder.nothing"])
def test_module_and_class_that_are_not_there(spec):
    with registry.trusted(spec), pytest.raises(PluginLoadError, match="cannot be imported"):
        registry.load("parameterization", spec)


def test_listing_runs_no_code_of_a_plugin(install, tmp_path, capsys):
    effect = tmp_path / "effect"
    install("dd-loud", ["loud"], f'"""Loud."""\nopen({str(effect)!r}, "w").close()\nprint("hello")\n{GOOD}')
    (info,) = _listed("loud")
    assert info.status()[0] == "ok"
    assert registry.find("parameterization", "loud") == info
    assert not effect.exists()
    assert capsys.readouterr().out == ""
    registry.load("parameterization", "loud")
    assert effect.exists()


def test_a_distribution_without_metadata_does_not_stop_the_listing(install, tmp_path):
    for name in ("dd-bare", "dd-naked"):
        install(name, ["bare"], None)
        (tmp_path / f"{name.replace('-', '_')}-1.2.3.dist-info" / "METADATA").unlink()
    assert {info.distribution for info in _listed("bare")} == {"?"}


def test_shell_completion_lists_names_and_imports_nothing(install, tmp_path):
    """Not torch, and no plugin: one that takes long, or ends the process, when imported is listed all the same."""
    install("dd-slow", ["slow"], "import time\ntime.sleep(60)\n" + textwrap.dedent(GOOD))
    install("dd-crash", ["crash"], "import os\nos._exit(9)\n" + textwrap.dedent(GOOD))
    script = """
        import json, sys
        from benchmark_adapters.cli.options import complete
        names = complete("parameterization")
        print(json.dumps([names, sorted({m.partition(".")[0] for m in sys.modules})]))
    """
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-c", textwrap.dedent(script)]
    out = subprocess.run(words, capture_output=True, check=True, timeout=60, env=environment)
    assert time.perf_counter() - begun < 20
    names, modules = json.loads(out.stdout)
    assert {"hmn", "dd-slow/slow", "dd-crash/crash"} <= set(names)
    assert not {"torch", "numpy", "dd_slow", "dd_crash"} & set(modules)


def test_a_class_that_was_loaded_is_found_without_reading_metadata_again(install, monkeypatch):
    install("dd-lowrank", ["lowrank"])
    loaded = registry.load("parameterization", "lowrank")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "list_plugins", lambda kind: pytest.fail("metadata were read again"))
        assert registry.load("parameterization", "lowrank") is loaded
    monkeypatch.setattr(sys, "path", sys.path[1:])  # without the folder that it is installed in
    with pytest.raises(UnknownPluginError):
        registry.load("parameterization", "lowrank")


@pytest.mark.parametrize(
    "module", ["dd_plugins./", "dd_plugins...etc", "/etc/passwd", "dd_plugins.\0", "", "..", "dd_plugins.a-b"]
)
def test_the_source_of_what_is_no_module_is_none(module):
    assert source_of(module) is None
