"""Checks of a selector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dd_plugins.api.pruning import Selector
from dd_plugins.seeds import make_generator
from dd_plugins.testing.checks import Subject
from dd_plugins.testing.common import check_declares_its_api_version, check_documented, check_settings_are_described
from dd_plugins.testing.subjects import global_generators_left_alone

SIZES = [(1, 1), (7, 1), (7, 4), (20, 13), (20, 20)]  # images of a class, and how many of them are kept
BETAS = (0.0, 0.3, 1.0)


def check_selection(subject: Subject) -> None:
    """As many different rows as required are selected, for every share beta."""
    for count, keep in SIZES:
        _check_rows(subject, torch.linspace(-1, 1, count).flip(0).double(), keep)


def check_equal_scores(subject: Subject) -> None:
    """If all images have the same score, it still selects as many as required."""
    for count, keep in SIZES:
        _check_rows(subject, torch.zeros(count, dtype=torch.float64), keep)


def check_selection_is_seeded(subject: Subject) -> None:
    """The same generator gives the same rows, and global generators are left alone."""
    ease = torch.randn(40, generator=make_generator(1)).double()
    with global_generators_left_alone(f"{subject.name}.select"):
        one, other = (_selected(subject, ease, 15, 0.3) for _ in range(2))
    assert torch.equal(one, other), f"{subject.name}.select: other rows for the same seed; draw from the generator"


def check_inputs_are_left_alone(subject: Subject) -> None:
    """The scores are as they were."""
    ease = torch.randn(40, generator=make_generator(1)).double()
    before = ease.clone()
    _selected(subject, ease, 15, 0.3)
    assert torch.equal(ease, before), f"{subject.name}.select changes the scores"


def check_beta_is_declared(subject: Subject) -> None:
    """A selector whose rows depend on beta declares it with ``uses_beta = True``."""
    ease = torch.randn(40, generator=make_generator(1)).double()
    found = {tuple(_selected(subject, ease, 15, beta).sort().values.tolist()) for beta in BETAS}
    assert len(found) == 1 or subject.plugin.uses_beta, f"{subject.name}: uses_beta = False, but beta changes the rows"


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_selection,
    check_equal_scores,
    check_selection_is_seeded,
    check_inputs_are_left_alone,
    check_beta_is_declared,
]


def _selected(subject: Subject, ease: Tensor, keep: int, beta: float) -> Tensor:
    made: Selector = subject.plugin(subject.config)
    return made.select(ease, keep, beta, make_generator(0))


def _check_rows(subject: Subject, ease: Tensor, keep: int) -> None:
    for beta in BETAS:
        rows = _selected(subject, ease.clone(), keep, beta)
        what = f"{subject.name}.select of {keep} among {len(ease)}"
        assert rows.dtype == torch.int64, f"{what}: expected int64, but got {rows.dtype}"
        assert len(rows) == len(rows.unique()) == keep, (
            f"{what}: {len(rows)} rows, {len(rows.unique())} of them different"
        )
        assert 0 <= int(rows.min()) <= int(rows.max()) < len(ease), f"{what}: a row that does not exist"
