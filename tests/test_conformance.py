"""Conformance checks: every built-in passes, and for every check a wrong plugin fails it and nothing else."""

import importlib
import re

import pytest
from tiny_runs import command
from wrong_formats import WRONG_FORMATS, OneFile
from wrong_plugins import (
    GOOD,
    WRONG,
    ForColour,
    Greedy,
    InFloat32,
    Mixture,
    RefusesGrey,
    RoundsItsLoss,
    SaysItsGradientIsInexact,
)
from wrong_pruning import WRONG_PRUNING, Confidence, Last

from dd_plugins import registry
from dd_plugins.api import UsageError
from dd_plugins.testing import check_plugin, checks_for, parametrize_with_checks
from dd_plugins.testing.checks import CHECKS

BUILT_IN = {kind: [i.name for i in registry.list_plugins(kind) if i.distribution == registry.OWN] for kind in CHECKS}
WRONG = {**WRONG, **WRONG_PRUNING, "format": WRONG_FORMATS}
NEED_FILES = {"folder", "imagenet", "parquet"}  # an argument says where


def of_kind(kind):
    return [name for name in BUILT_IN[kind] if name not in NEED_FILES]


@parametrize_with_checks(of_kind("parameterization"), "parameterization")
def test_parameterizations(check):
    check()


@parametrize_with_checks(of_kind("objective"), "objective")
def test_objectives(check):
    check()


@parametrize_with_checks(of_kind("pruning"), "pruning")
def test_prunings(check):
    check()


@parametrize_with_checks(of_kind("network"), "network")
def test_networks(check):
    check()


@parametrize_with_checks(of_kind("prior"), "prior")
def test_priors(check):
    check()


@parametrize_with_checks(["digits"], "dataset")
def test_datasets(check):
    check()


@parametrize_with_checks(of_kind("benchmark"), "benchmark")
def test_benchmarks(check):
    check()


@parametrize_with_checks(of_kind("score"), "score")
def test_scores(check):
    check()


@parametrize_with_checks(of_kind("selector"), "selector")
def test_selectors(check):
    check()


@parametrize_with_checks(of_kind("format"), "format")
def test_formats(check):
    check()


@parametrize_with_checks(of_kind("method"), "method")
def test_methods(check):
    check()


@parametrize_with_checks(of_kind("protocol"), "protocol")
def test_protocols(check):
    check()


# ---- the checks themselves -----------------------------------------------------------------------------------------


@parametrize_with_checks([*GOOD, OneFile, Confidence, Last])
def test_plugins_that_keep_their_contract_pass(check):
    check()


def test_every_check_has_a_wrong_plugin():
    for kind, module in CHECKS.items():
        if kind in registry.FILES:  # tests/test_foreign_files.py
            continue
        names = [function.__name__.removeprefix("check_") for function in importlib.import_module(module).CHECKS]
        assert names == list(WRONG[kind]), kind


@pytest.mark.parametrize(
    ("name", "wrong"), [(name, wrong) for found in WRONG.values() for name, wrong in found.items()]
)
def test_a_wrong_plugin_fails_its_check_and_only_it(name, wrong):
    results = {result.check.name: result for result in check_plugin(wrong)}
    assert [check for check, result in results.items() if result.status == "failed"] == [name], {
        check: result.reason for check, result in results.items() if result.status == "failed"
    }
    told = results[name].reason
    assert wrong.__name__ in told
    assert "\n" not in told


def result_of(name, plugin, config=None):
    (check,) = [check for check in checks_for(plugin, "objective", config) if check.name == name]
    return check.run()


def test_an_objective_can_say_that_its_gradient_is_not_exact():
    name, told = "gradient_is_that_of_the_loss", "its gradient is not that of its loss, and it says so:"
    said = result_of(name, SaysItsGradientIsInexact)
    assert (said.status, said.reason) == ("skipped", f"{told} half of it is left out")
    for objective in ("mtt", "haba"):
        assert result_of(name, objective).status == "passed"
        truncated = result_of(name, objective, {"gradient": "tesla"})
        assert truncated.status == "skipped"
        assert truncated.reason.startswith(f"{told} TESLA")


@pytest.mark.parametrize("objective", ["mtt", "haba"])
def test_a_truncated_gradient_that_does_not_say_so_is_found(objective, monkeypatch):
    plugin = registry.load("objective", objective)
    monkeypatch.setattr(plugin, "inexact", property(lambda self: "", lambda self, why: None), raising=False)
    found = result_of("gradient_is_that_of_the_loss", plugin, {"gradient": "tesla"})
    assert found.status == "failed"
    assert "the loss changes by" in found.reason


@pytest.mark.parametrize("objective", [InFloat32, RoundsItsLoss])
def test_a_gradient_cannot_be_checked_in_float32(objective):
    found = result_of("gradient_is_that_of_the_loss", objective)
    assert found.status == "skipped"
    assert found.reason.startswith("it does not work in float64: ")


def test_objectives_are_checked_with_colour_and_with_grey():
    found = result_of("matches_are_well_formed", ForColour)
    assert found.status == "failed"
    assert "(with 3 classes of images (1, 12, 10))" in found.reason
    assert re.search(r"\(wrong_plugins\.py, line \d+\)$", found.reason)
    assert result_of("matches_are_well_formed", RefusesGrey).status == "passed"


# ---- three front ends ----------------------------------------------------------------------------------------------

REASON = "one image too many, on purpose"


@parametrize_with_checks([Greedy], expected_failures={"fits_its_budget_at_every_ipc": REASON})
def test_an_expected_failure_is_one(check):
    check()


def test_expected_failures_are_strict_and_known():
    results = check_plugin(Greedy, expected_failures={"fits_its_budget_at_every_ipc": REASON})
    (expected,) = [result for result in results if result.status == "expected failure"]
    assert expected.reason == REASON
    (passes,) = [r for r in check_plugin(Mixture, expected_failures={"decoded_images": REASON}) if r.status == "failed"]
    assert passes.reason == f"passes, but was expected to fail: {REASON}"
    with pytest.raises(UsageError, match="no check of a parameterization is named budget; there are documented"):
        checks_for(Mixture, expected_failures={"budget": "no"})


def test_the_command_prints_a_table_and_exits_with_3(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.syspath_prepend("tests")
    assert command("check", "wrong_plugins:HalfStages") == 3
    printed = capsys.readouterr().out
    assert "the shares of its stages add up to 0.5" in printed
    assert "16 passed, 1 failed, 1 skipped" in printed
    assert command("check", "wrong_plugins:Mixture", "--set", "rank=4") == 0
    assert command("check", "pixel") == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "no plugin of any kind is named 'nothing'"),
        (["pixle"], "did you mean pixel?"),
        (["haba"], "'haba' names more than one plugin, parameterization and objective: say which with --kind"),
        (["no_such_module:Class"], "no_such_module:Class cannot be imported: ModuleNotFoundError"),
        (["wrong_plugins:Nothing"], "has no attribute 'Nothing'"),
        (["wrong_plugins:Once"], "Once has none of the bases of a plugin"),
        (["pixel", "--set", "nosuch=1"], "parameterization.nosuch"),
        (["pixel", "--kind", "container"], "unknown kind 'container'"),
        (["pixel", "--kind", "objective"], "unknown objective 'pixel'"),
        (["pixel", "--set", "rank"], "--set rank: expected KEY=VALUE"),
    ],
)
def test_mistakes_are_one_line(words, told, capsys, monkeypatch):
    monkeypatch.syspath_prepend("tests")
    assert command("check", *words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
