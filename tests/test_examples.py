"""The examples in docstrings do what they say."""

import doctest
import importlib
import pkgutil

import pytest

import dd_plugins

MODULES = sorted(module.name for module in pkgutil.walk_packages(dd_plugins.__path__, "dd_plugins."))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 3
