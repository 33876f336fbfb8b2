"""Checks that hold for plugins of every kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps

from dd_plugins.api import ConfigError, RealData
from dd_plugins.api.config import parse_config
from dd_plugins.registry import contract_problem
from dd_plugins.testing.checks import NotApplicable, Subject
from dd_plugins.testing.subjects import COLOUR, GREY, made_up_data


def check_documented(subject: Subject) -> None:
    """The class says in one line what it is: lists show it."""
    own = subject.plugin.__dict__.get("__doc__") or ""
    first = inspect.cleandoc(own).partition("\n")[0]
    assert len(first) > 10, f"{subject.name} has no docstring whose first line says what it is"


def check_summary(subject: Subject) -> None:
    """The file says in one line what it is: lists show it."""
    status, line = subject.plugin.status()
    assert status == "ok", f"{subject.name}: {line}"
    assert len(line) > 10, f"{subject.name} has no summary that says what it is"


def check_declares_its_api_version(subject: Subject) -> None:
    """The class itself declares the API version it is written for, and its Config is a PluginConfig."""
    problem = contract_problem(subject.plugin)
    assert not problem, f"{subject.name}: {problem}"


def check_settings_are_described(subject: Subject) -> None:
    """Every setting has a default and a description, and unknown settings are refused."""
    config = subject.plugin.Config
    for name, setting in config.model_fields.items():
        assert not setting.is_required(), f"{subject.name}.Config.{name} has no default"
        assert setting.description, f"{subject.name}.Config.{name} has no description: Field(..., description=...)"
    try:
        parse_config(config, {"no_such_setting": 1}, subject.kind)
    except ConfigError:
        return
    raise AssertionError(f"{subject.name}.Config accepts unknown settings silently; derive it from PluginConfig")


def in_colour_and_grey(check: Callable[[Subject, RealData], None]) -> Callable[[Subject], None]:
    """Makes a check that runs on two data sets; a plugin that refuses one is checked on the other.

    They differ in everything that a plugin might assume: channels, classes, and whether images are square.
    """

    @wraps(check)
    def on_both(subject: Subject) -> None:
        refused = []
        for classes, shape in (COLOUR, GREY):
            try:
                check(subject, made_up_data(classes, shape))
            except NotApplicable as why:
                refused.append(why)
            except Exception as error:
                error.add_note(f"with {classes} classes of images {shape}")
                raise
        if len(refused) == 2:
            raise refused[0]

    return on_both
