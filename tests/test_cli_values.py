"""Empty and odd values of every option, argument and configuration key: one line, exit code 2, and nothing is made."""

import pytest
import typer
import yaml
from committed import FOLDER
from tiny_runs import command

from benchmark_adapters.cli.main import app
from dd_plugins.api import ConfigError
from dd_plugins.engine.config import resolve
from dd_plugins.engine.keys import flatten

COMMANDS = typer.main.get_command(app).commands
OPTIONS = [
    (name, param.opts[0])
    for name, each in sorted(COMMANDS.items())
    for param in each.params
    if param.param_type_name == "option" and not param.is_flag
]


def _error(capsys, *words):
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("dd-bench: ")
    assert error.count("\n") == 1, error
    return error


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.glob("[!.c]*")) == []


@pytest.mark.parametrize(("name", "flag"), OPTIONS)
def test_no_option_takes_an_empty_value(name, flag, capsys):
    for value in ("", " ", "\t", ",", ",,", " , "):
        assert f"{flag} {value!r}: expected a value" in _error(capsys, name, flag, value)


@pytest.mark.parametrize("name", sorted(name for name, each in COMMANDS.items() if each.params))
def test_no_argument_takes_an_empty_value(name, capsys):
    if any(param.param_type_name == "argument" for param in COMMANDS[name].params):
        assert "'': expected a value" in _error(capsys, name, "")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run", "--ipc", "0"], "ipc = 0"),
        (["run", "--ipc", "x"], "'--ipc'"),
        (["run", "--ipc", "1.5"], "'--ipc'"),
        (["run", "--steps", "-1"], "steps = -1"),
        (["run", "--seed", "-1"], "seed = -1"),
        (["run", "--over-budget", "nan"], "over_budget"),
        (["run", "--over-budget", "2"], "over_budget"),
        (["run", "--checkpoint-seconds", "-1"], "'--checkpoint-seconds'"),
        (["run", "--checkpoint-seconds", "nan"], "'--checkpoint-seconds'"),
        (["run", "--chunk", "0"], "'--chunk'"),
        (["run", "--set", "="], "--set ="),
        (["run", "--set", "=1"], "--set =1"),
        (["run", "--set", "method="], "no value"),
        (["run", "--set", "method=''"], "method = ''"),
        (["run", "--set", "network="], "no value"),
        (["run", "--set", "network=''"], "unknown network ''"),
        (["run", "--network", "nonet"], "unknown network 'nonet'"),
        (["run", "--benchmark", "nobench"], "unknown benchmark 'nobench'"),
        (["run", "--device", "x"], "cpu or cuda"),
        (["run", "--param"], "'--param' requires an argument"),
        (["run", "extra"], "unexpected extra argument 'extra'\n"),
        (["run", "HMN"], "argument 'HMN'; did you mean --param hmn or --method hmn or --protocol hmn?"),
        (["run", "dm", "--ipc", "2"], "argument 'dm'; did you mean --objective dm or --method dm?"),
        (["show", "x", "hmn"], "unexpected extra argument 'hmn'\n"),
        (["run", "--lr", "0.1"], "no such option --lr; settings are given by --set KEY=VALUE"),
        (["run", "--objektive", "dm"], "no such option --objektive; did you mean --objective?"),
        (["compare", "--ipc", "0"], "ipc = 0"),
        (["compare", "--runs", "0"], "'--runs'"),
        (["compare", "--time-limit", "0"], "'--time-limit'"),
        (["compare", "--time-limit", "nan"], "'--time-limit'"),
        (["compare", "--trials", "0"], "'--trials'"),
        (["compare", "--methods", "hmn", "--format", "x"], "'--format'"),
        (["compare", "--methods", "hmn", "--baseline", "x"], "takes no part"),
        (["compare", "--methods", "hmn", "--across", "nonet"], "unknown network 'nonet'"),
        (["compare", "--methods", "/x"], "unknown method ''"),
        (["compare", "--methods", "hmn", "--params", "hmn"], "--matrix"),
        (["compare", "--methods", "hmn,HMN"], "takes part twice"),
        (["prune", "--keep", "0"], "--keep 0"),
        (["prune", "--keep", "1.5"], "--keep 1.5"),
        (["prune", "--keep", "nan"], "--keep nan"),
        (["prune", "--keep", "-1"], "--keep -1"),
        (["prune", "--strategy", "x"], "unknown pruning 'x'"),
        (["prune-study", "x", "--rates", "2"], "--rates 2"),
        (["prune-study", "x", "--grid", "nan"], "--grid nan"),
        (["prune-study", "x", "--rates", "a,b"], "--rates a,b"),
        (["prepare", "--method", "mtt", "--set", "objective.experts=0"], "objective.experts = 0"),
        (["prepare", "--network", "nonet"], "unknown network 'nonet'"),
        (["profile", "--repeat", "0"], "'--repeat'"),
        (["plot", "--against", "x"], "'--against'"),
        (["prepare", "--method", "h-pd", "--set", "parameterization.recipe.kind=x"], "unknown prior 'x'"),
        (["new", "pruning", "-"], "'-'"),
        (["import", "x", "--from", "pt", "--ipc", "0"], "'--ipc'"),
        (["check", "hmn", "--kind", "x"], "unknown kind 'x'"),
        (["table", "--format", "x"], "'--format'"),
        (["tabel"], "'tabel'. Did you mean 'table'?"),
    ],
)
def test_odd_values(words, part, capsys):
    assert part in _error(capsys, *words)


def test_commands_and_choices_are_found_in_any_case(capsys):
    assert command("TABLE", FOLDER, "--format", "CSV") == 0
    assert capsys.readouterr().out.startswith("data set,IPC")


@pytest.mark.parametrize(
    "text",
    [
        "method: {a: 1}",
        "method: {}",
        "method:",
        "method: 5",
        "method: [hmn]",
        "method: ''",
        "protocol: ''",
        "protocol: [a]",
        "protocol:",
        "protocol: {trials: {}}",
        "dataset: {a: 1}",
        "dataset:",
        "dataset: ' '",
        "steps: {}",
        "steps: {a: 1}",
        "ipc: {a: 1}",
        "ipc: []",
        "ipc:",
        "seed: {x: 1}",
        "over_budget: {}",
        "optimizer: 3",
        "optimizer:",
        "optimizer: {lr: {}}",
        "parameterization: {name: {}}",
        "parameterization: [hmn]",
        "network: {width: {}}",
        "pruning: {beta: 1}",
        "data: 3",
        "a.b: 4",
    ],
)
def test_a_key_of_the_wrong_shape_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        resolve({}, base=flatten(yaml.safe_load(text)))
    assert text.partition(":")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_section_without_settings_is_the_default():
    empty = "{optimizer: {}, network: {}, data: {}, protocol: {network: {}, train: {}}, pruning: {}}"
    assert resolve({}, base=flatten(yaml.safe_load(empty))) == resolve({})
