"""Where the state of an unfinished condensation is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class CheckpointNotes(BaseModel):
    """What a checkpoint says besides its tensors.

    Attributes:
        step: Steps that are done.
        stage: The name of the stage of that step.
        seconds: Wall time of the condensation so far.
        cpu_seconds: CPU time so far, over all threads.
        prepare_seconds: Wall time of one-off work before the first step.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    step: int = Field(ge=0)
    stage: str
    seconds: float = Field(ge=0)
    cpu_seconds: float = Field(ge=0)
    prepare_seconds: float = Field(ge=0)


class Checkpointer(Protocol):
    """Keeps the last checkpoint of one condensation."""

    def save(self, tensors: Mapping[str, Tensor], notes: CheckpointNotes) -> None:
        """Keeps a checkpoint in the place of the last one; the tensors may change afterwards."""

    def load(self) -> tuple[dict[str, Tensor], CheckpointNotes] | None:
        """The last checkpoint; None if there is none.

        Raises:
            ResumeMismatch: If it is damaged, or belongs to another run.
        """

    def place(self) -> str:
        """Where the last checkpoint is, for messages; empty if there is none."""


class NoCheckpoints:
    """Keeps nothing: an interrupted condensation begins again."""

    def save(self, tensors: Mapping[str, Tensor], notes: CheckpointNotes) -> None:
        """Keeps nothing."""

    def load(self) -> None:
        """There is no checkpoint."""

    def place(self) -> str:
        """Nowhere."""
        return ""


class MemoryCheckpointer:
    """Keeps the last checkpoint in memory: an interrupted call can go on in the same process."""

    def __init__(self) -> None:
        self._last: tuple[dict[str, Tensor], CheckpointNotes] | None = None

    def save(self, tensors: Mapping[str, Tensor], notes: CheckpointNotes) -> None:
        """Keeps copies of the tensors on the CPU."""
        self._last = {name: value.detach().cpu().clone() for name, value in tensors.items()}, notes

    def load(self) -> tuple[dict[str, Tensor], CheckpointNotes] | None:
        """The last checkpoint, with copies of its tensors."""
        if self._last is None:
            return None
        tensors, notes = self._last
        return {name: value.clone() for name, value in tensors.items()}, notes

    def place(self) -> str:
        """In memory."""
        return "in memory" if self._last else ""
