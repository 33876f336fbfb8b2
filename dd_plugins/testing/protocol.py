"""Checks of a protocol."""

from __future__ import annotations

from collections.abc import Callable

from dd_plugins.engine.protocols import load_protocol
from dd_plugins.testing.checks import Subject
from dd_plugins.testing.common import check_summary


def check_source(subject: Subject) -> None:
    """It says where its values are from."""
    assert load_protocol(subject.spec).source.strip(), f"{subject.name} has no source"


def check_settings_are_valid(subject: Subject) -> None:
    """Its values are valid, and its network is installed and takes the given settings."""
    assert load_protocol(subject.spec).hash


CHECKS: list[Callable[[Subject], None]] = [check_summary, check_source, check_settings_are_valid]
