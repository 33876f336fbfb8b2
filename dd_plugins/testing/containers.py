"""Containers on made-up data, for the checks of a parameterization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dd_plugins.api import (
    BudgetTooSmall,
    NeedsPrior,
    Parameterization,
    PruningUnits,
    RealData,
    Stage,
    Staged,
    StorageBudget,
    UsageError,
)
from dd_plugins.seeds import make_generator
from dd_plugins.testing.checks import NotApplicable, Subject
from dd_plugins.testing.subjects import IPCS, context_for

TOLERANCE = 1e-5  # of an image in model space, where two ways of decoding may round differently


def allocate(subject: Subject, real: RealData, ipc: int) -> Parameterization:
    """A container within the budget of an IPC, as it is built."""
    made: Parameterization = subject.plugin(real.spec, StorageBudget.ipc(real.spec, ipc), subject.config)
    return made


def make(subject: Subject, real: RealData, seed: int = 0, reset: bool = True) -> Parameterization:
    """At the smallest IPC that it fits into, and where every class has two images at least."""
    container = None
    for ipc in IPCS[1:]:
        try:
            container = allocate(subject, real, ipc)
        except BudgetTooSmall:
            continue
        if min(container.counts) > 1:
            break
    if container is None:
        raise NotApplicable(f"it fits into the budget of none of the IPCs {IPCS[1:]}")
    if isinstance(container, NeedsPrior):
        container.prepare(real, context_for(real, seed))
    if reset:
        container.reset(make_generator(seed), real)
    return container


def make_finished(subject: Subject, real: RealData, seed: int = 0) -> Parameterization:
    """A container as it is when it is stored."""
    container = make(subject, real, seed)
    if isinstance(container, Staged):
        container.finish()
    return container


def stages_of(container: Parameterization) -> Sequence[Stage]:
    """Its stages; one where it is not learned in stages."""
    return container.stages() if isinstance(container, Staged) else (Stage("main"),)


def enter_stage(container: Parameterization, stage: Stage) -> None:
    """Enters a stage, where there are stages."""
    if isinstance(container, Staged):
        container.enter_stage(stage)


class _NoTensors(TorchDispatchMode):
    """Within it no operation of torch may run."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"plan() runs {func}, but a plan is arithmetic on shapes, without tensors")


def no_tensors() -> AbstractContextManager[object]:
    """Within it every operation of torch is an error."""
    made: AbstractContextManager[object] = _NoTensors()  # type: ignore[no-untyped-call]
    return made


def learned_tensors(container: Parameterization) -> list[Tensor]:
    """All tensors of its groups for the optimizer."""
    try:
        return [tensor for group in container.parameter_groups() for tensor in group["params"]]
    except UsageError as error:
        raise NotApplicable(f"it is not learned: {error}") from None


def name_of(container: Parameterization, tensor: Tensor) -> str:
    """The name of a parameter; empty for other tensors."""
    return next((name for name, p in container.named_parameters() if p is tensor), "")


def some_units(container: Parameterization, turn: int) -> Tensor:
    """All images but one unit of every other class, another one each turn; what goes together goes together."""
    units = container.units() if isinstance(container, PruningUnits) else torch.arange(len(container.labels))
    dropped = []
    for label in range(turn % 2, container.data.num_classes, 2):
        own = units[container.labels == label].unique()
        if len(own) > 1:
            dropped.append(own[turn % len(own)])
    if not dropped:
        raise NotApplicable("a class would be left with no image at every IPC that was tried")
    return torch.nonzero(~torch.isin(units, torch.stack(dropped))).flatten()


def assert_same(found: Tensor, expected: Tensor, message: str, tolerance: float = TOLERANCE) -> None:
    """Asserts equal shapes and, up to a tolerance, equal values."""
    assert found.shape == expected.shape, f"{message}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    apart = float((found - expected).abs().max()) if found.numel() else 0.0
    assert apart <= tolerance * max(1.0, float(expected.abs().max())), f"{message} (off by {apart:.3g})"


def assert_refused(call: Callable[[], object], what: str) -> None:
    """Asserts that a call raises a UsageError of one line."""
    try:
        call()
    except UsageError as error:
        message = str(error)
    else:
        raise AssertionError(f"{what} neither works nor raises a UsageError that says so")
    assert "\n" not in message, f"{what} refuses in more than one line"
