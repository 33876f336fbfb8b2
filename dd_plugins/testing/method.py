"""Checks of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dd_plugins import registry
from dd_plugins.engine.config import resolve
from dd_plugins.engine.methods import Method, load_method
from dd_plugins.testing.checks import Subject
from dd_plugins.testing.common import check_summary


def check_parts_are_installed(subject: Subject) -> None:
    """Its container and its objective are installed."""
    method = _method(subject)
    for kind in ("parameterization", "objective"):
        registry.load(kind, getattr(method, kind))


def check_settings_have_sources(subject: Subject) -> None:
    """Every block of settings says where its values are from."""
    for number, block in enumerate(_method(subject).settings):
        assert block.source.strip(), f"{subject.name}: settings.{number} has no source"


def check_settings_are_valid(subject: Subject) -> None:
    """Every data set and IPC that it has settings for gives a valid configuration."""
    for dataset, ipc in dict.fromkeys(_cells(_method(subject))):
        resolve({"method": subject.spec, "dataset": dataset, "ipc": ipc})


CHECKS: list[Callable[[Subject], None]] = [
    check_summary,
    check_parts_are_installed,
    check_settings_have_sources,
    check_settings_are_valid,
]


def _method(subject: Subject) -> Method:
    return load_method(subject.spec)


def _cells(method: Method) -> Iterator[tuple[str, int]]:
    yield "digits", 1
    for block in method.settings:
        known = block.applies.dataset
        datasets = (known,) if isinstance(known, str) else known or ("digits",)
        yield from ((dataset, ipc) for dataset in datasets for ipc in block.applies.ipcs() or (1,))
