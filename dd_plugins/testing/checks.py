"""What a conformance check is, and the three ways to run one."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dd_plugins import names, registry
from dd_plugins.api.config import parse_config
from dd_plugins.errors import UnknownPluginError, UsageError

if TYPE_CHECKING:
    import pytest

# Where each kind's checks are; each module has a list CHECKS of functions that take a `Subject`.
CHECKS = {
    "parameterization": "dd_plugins.testing.parameterization",
    "objective": "dd_plugins.testing.objective",
    "pruning": "dd_plugins.testing.pruning",
    "score": "dd_plugins.testing.score",
    "selector": "dd_plugins.testing.selector",
    "dataset": "dd_plugins.testing.dataset",
    "network": "dd_plugins.testing.network",
    "prior": "dd_plugins.testing.prior",
    "benchmark": "dd_plugins.testing.benchmark",
    "format": "dd_plugins.testing.format",
    "method": "dd_plugins.testing.method",
    "protocol": "dd_plugins.testing.protocol",
}
Status = Literal["passed", "failed", "expected failure", "skipped"]


@dataclass(frozen=True)
class Subject:
    """A plugin under test.

    Attributes:
        kind: Its kind.
        spec: How it was named: ``name``, ``distribution/name`` or ``module:Class``; of a data set with its argument.
        plugin: The class; of a file its `PluginInfo`.
        config: Settings that all checks use; by default the plugin's own ``check_settings``.
        argument: Of a data set, the part after its name: ``folder:ARGUMENT``.
    """

    kind: str
    spec: str
    plugin: Any
    config: Mapping[str, Any] = field(default_factory=dict)
    argument: str = ""

    @property
    def name(self) -> str:
        """The name of the class or the file, for messages."""
        return str(getattr(self.plugin, "__name__", self.spec))


class NotApplicable(Exception):
    """A check that says nothing about this plugin, and why."""


@dataclass(frozen=True)
class Check:
    """One check of one plugin; calling it raises where the plugin breaks its contract.

    Attributes:
        function: Takes a `Subject`.
        subject: The plugin.
        expected: Why it is expected to fail; None if it is not.
    """

    function: Callable[[Subject], None]
    subject: Subject
    expected: str | None = None

    @property
    def name(self) -> str:
        """The function's name without ``check_``."""
        return self.function.__name__.removeprefix("check_")

    @property
    def about(self) -> str:
        """What the check demands, in one line."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self) -> None:
        """Runs it.

        Raises:
            AssertionError: If the contract is broken: who, and how.
            NotApplicable: If it says nothing about this plugin.
        """
        try:
            self.function(self.subject)
        except NotApplicable:
            raise
        except Exception as error:
            if isinstance(error, AssertionError) and str(error).startswith(self.subject.name):
                raise  # a check's own words
            message = f"{type(error).__name__}: {_in_one_line(error)}{_place(error, self.subject.plugin)}"
            raise AssertionError(f"{self.subject.name}, {self.name}: {message}") from error

    def run(self) -> CheckResult:
        """Runs it and returns the result; an expected failure that passes has failed."""
        try:
            self()
        except NotApplicable as why:
            return CheckResult(self, "skipped", str(why))
        except AssertionError as error:
            if self.expected is not None:
                return CheckResult(self, "expected failure", self.expected, error)
            return CheckResult(self, "failed", _in_one_line(error), error)
        if self.expected is not None:
            return CheckResult(self, "failed", f"passes, but was expected to fail: {self.expected}")
        return CheckResult(self, "passed")


@dataclass(frozen=True)
class CheckResult:
    """How a check went.

    Attributes:
        check: The check.
        status: ``passed``, ``failed``, ``expected failure`` or ``skipped``.
        reason: Why, unless it passed.
        error: What was raised, where something was.
    """

    check: Check
    status: Status
    reason: str = ""
    error: BaseException | None = None


def checks_for(
    plugin: str | type[Any],
    kind: str | None = None,
    config: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """All checks of a plugin.

    Args:
        plugin: Its name, ``distribution/name``, ``module:Class``, or the class.
        kind: Its kind; found by its name, or by its class, if that is possible.
        config: Settings that all checks use, above the class's ``check_settings``.
        expected_failures: Names of checks that are known to fail, with the reason.

    Raises:
        UsageError: If the kind is not known, or an expected failure names no check.
        PluginLoadError: If the plugin cannot be imported.
    """
    subject = _subject(plugin, kind, config)
    expected = dict(expected_failures or {})
    functions = importlib.import_module(CHECKS[subject.kind]).CHECKS
    made = [Check(function, subject, expected.pop(_short(function), None)) for function in functions]
    if expected:
        known = ", ".join(check.name for check in made)
        raise UsageError(f"no check of a {subject.kind} is named {' or '.join(expected)}; there are {known}")
    return made


def check_plugin(
    plugin: str | type[Any],
    kind: str | None = None,
    config: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[CheckResult]:
    """Runs all checks of a plugin and returns one result each; arguments as of `checks_for`."""
    return [check.run() for check in checks_for(plugin, kind, config, expected_failures)]


def parametrize_with_checks(
    plugins: Iterable[str | type[Any]],
    kind: str | None = None,
    config: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """A pytest decorator: the test gets every check of every plugin as its argument ``check``, and calls it.

    Expected failures are strict: one that passes is a failure. Arguments as of `checks_for`, for all plugins alike.
    """
    import pytest

    def of(check: Check) -> Any:
        marks = []
        if check.expected is not None:
            marks.append(pytest.mark.xfail(reason=check.expected, strict=True, raises=AssertionError))
        return pytest.param(_Skipping(check), id=f"{check.subject.spec}-{check.name}", marks=marks)

    found = [check for plugin in plugins for check in checks_for(plugin, kind, config, expected_failures)]
    return pytest.mark.parametrize("check", [of(check) for check in found])


@dataclass(frozen=True)
class _Skipping:
    """A check for pytest: one that does not apply is skipped with its reason."""

    check: Check

    def __call__(self) -> None:
        import pytest

        try:
            self.check()
        except NotApplicable as why:
            pytest.skip(str(why))


def _subject(plugin: str | type[Any], kind: str | None, config: Mapping[str, Any] | None) -> Subject:
    argument = ""
    if isinstance(plugin, str):
        name = plugin
        if kind in (None, "dataset"):
            from dd_plugins.datasets import split_spec

            head, rest = split_spec(plugin)
            if kind == "dataset" or registry.is_installed("dataset", head):
                name, argument = head, rest
        registry.add_trusted([name])  # the user asks to run it
        kind = kind or _kind_of(name)
        if kind in registry.FILES:
            info = registry.find(kind, name)
            return Subject(kind, info.spec, info)
        loaded, spec = registry.load(kind, name), plugin
    else:
        loaded, spec = plugin, plugin.__name__
        kind = kind or _kind_of_class(plugin)
    settings = {**(getattr(loaded, "check_settings", None) or {}), **(config or {})}
    parse_config(loaded.Config, settings, kind)  # a mistake in the settings is not the plugin's
    return Subject(kind, spec, loaded, settings, argument)


def _kind_of(spec: str) -> str:
    """The kind of a named plugin: the one that has such a name, or whose base its class has; classes before files."""
    if ":" in spec:
        return _kind_of_class(registry.load_class(spec))
    of_classes: Sequence[str] = [kind for kind in registry.BASES if registry.is_installed(kind, spec)]
    kinds = of_classes or [kind for kind in registry.FILES if registry.is_installed(kind, spec)]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise UsageError(f"{spec!r} names more than one plugin, {' and '.join(kinds)}: say which with --kind")
    known = sorted({info.spec for kind in CHECKS for info in registry.list_plugins(kind)})
    hint = names.suggestion(names.near(spec, known))
    raise UnknownPluginError(f"no plugin of any kind is named {names.quoted(spec)}{hint}")


def _kind_of_class(plugin: type[Any]) -> str:
    for kind in registry.BASES:
        if issubclass(plugin, registry.base_of(kind)):
            return kind
    raise UsageError(f"{plugin.__name__} has none of the bases of a plugin: {', '.join(registry.BASES.values())}")


def _short(function: Callable[[Subject], None]) -> str:
    return function.__name__.removeprefix("check_")


def _place(error: Exception, plugin: type[Any]) -> str:
    """Where in the plugin's own file it was raised: `` (file.py, line 3)``; empty if it was elsewhere."""
    try:
        file = inspect.getfile(plugin)
    except (TypeError, OSError):
        return ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if lines else ""


def _in_one_line(error: Exception) -> str:
    """What it says, and its notes in brackets."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return " ".join(f"{error}{notes}".split())
