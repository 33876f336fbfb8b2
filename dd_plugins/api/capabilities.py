"""What only some containers can do, each a base class of its own: callers ask ``isinstance(container, Staged)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dd_plugins.api.network import Network
from dd_plugins.api.objective import Context
from dd_plugins.api.real_data import RealData


@dataclass(frozen=True)
class Stage:
    """One stage of the optimisation: its ``name`` and its ``share`` of all steps (the shares add up to 1)."""

    name: str
    share: float = 1.0


@dataclass(frozen=True)
class Prior:
    """Frozen pretrained weights that a container needs; reported in a column of their own, never in the budget."""

    where: str
    sha256: str
    elements: int
    licence: str
    seconds: float = 0.0  # of its training


class Staged(ABC):
    """Containers that are learned in stages, which may differ in the tensors that are learned."""

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """The stages, in order."""

    def enter_stage(self, stage: Stage) -> None:
        """Called before the first step of each stage, also when a run resumes within it."""
        del stage

    def finish(self) -> None:
        """Called after the last step, before the set is stored."""
        return

    def working_state(self) -> dict[str, Tensor]:
        """What the next step depends on beside ``state_dict()``; kept in checkpoints, never in the stored file."""
        return {}

    def load_working_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`working_state` returned, in place: an optimizer already holds the tensors."""
        del state

    def summary(self) -> dict[str, float]:
        """Numbers about the stages for the record, such as scores of candidates."""
        return {}


class NeedsPrior(ABC):
    """Containers that are learned with frozen pretrained weights, such as those of a generator."""

    def check(self, network: Network) -> None:
        """Refuses what the container cannot work with, before a run writes anything.

        Args:
            network: One that the objective trains, on the CPU.
        """
        del network

    @abstractmethod
    def prepare(self, real: RealData, context: Context) -> None:
        """Finds or makes what is needed; called before ``reset``, and again before an interrupted run continues.

        Args:
            real: The data set.
            context: Makes networks, keeps the artifacts that runs share, and reports progress.
        """

    @classmethod
    def external_fingerprints(cls, config: Any) -> Sequence[str]:
        """Digests of everything outside the configuration that decides the result, such as files that it names.

        They are part of the run's id: other weights in the same folder are another run.

        Args:
            config: The container's ``Config``.
        """
        del config
        return ()

    def priors(self) -> Sequence[Prior]:
        """Frozen pretrained weights outside the stored file."""
        return ()


class Grouped(ABC):
    """Containers whose images are made by a few shared components; objectives may take batches by component."""

    @abstractmethod
    def groups(self) -> Tensor:
        """The component that makes each image (int64, ``(N,)``)."""


class PruningUnits(ABC):
    """Containers with images that can only be dropped together."""

    @abstractmethod
    def units(self) -> Tensor:
        """The unit of each image (int64, ``(N,)``): those with the same number are dropped together."""
