"""Conformance checks of priors."""

from __future__ import annotations

from collections.abc import Callable

from dd_plugins.api import parse_config
from dd_plugins.priors.base import check_contract
from dd_plugins.seeds import seeded_layers
from dd_plugins.testing.checks import NotApplicable, Subject
from dd_plugins.testing.common import check_declares_its_api_version, check_documented, check_settings_are_described


def check_stages_decode_to_the_same_images(subject: Subject) -> None:
    """A generator of random weights keeps its contract; see `dd_plugins.priors.base.check_contract`."""
    if subject.plugin.check_settings is None:
        raise NotApplicable("its weights come from files")
    config = parse_config(subject.plugin.Config, subject.config, "prior")
    with seeded_layers(0):
        made = subject.plugin(config)
    check_contract(made.eval().requires_grad_(False))


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_stages_decode_to_the_same_images,
]
