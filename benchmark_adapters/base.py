"""The abstract benchmark: whoever scores synthetic sets implements it, the native one like all others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from dd_plugins.api import PluginConfig, RealData, SyntheticSet, UsageError, parse_config


@dataclass(frozen=True)
class Cell:
    """What is scored: a data set, a budget in images per class, and the architecture that is trained."""

    dataset: str
    ipc: int
    architecture: str


@dataclass(frozen=True)
class Scores:
    """The scores of one synthetic set in one cell.

    Attributes:
        benchmark: Who scored.
        protocol: The protocol's name, and the ``protocol_hash`` of what it stood for.
        metric: What was measured, ``accuracy`` for the native benchmark: test accuracy of the last epoch, a fraction.
        trials: One number a trial.
        extra: Whatever else the benchmark reports.
    """

    benchmark: str
    protocol: str
    protocol_hash: str
    metric: str
    trials: tuple[float, ...]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferenceScore:
    """A published number with its source."""

    method: str
    cell: Cell
    value: float
    source: str


@dataclass(frozen=True)
class ScoreContext:
    """What a benchmark is given besides the set.

    Attributes:
        real: The data set; its test split is for the final number alone.
        device: Where to train.
        known: Trials that are already done, by number.
        on_trial: Called with (number, score) as each trial ends, so that nothing is lost.
        on_update: Called with (done, total) updates.
    """

    real: RealData
    device: torch.device
    known: dict[int, float] = field(default_factory=dict)
    on_trial: Callable[[int, float], None] | None = None
    on_update: Callable[[int, int], None] | None = None


class Benchmark(ABC):
    """Scores synthetic sets; authors write :meth:`cells` and :meth:`score`."""

    api_version: ClassVar[int] = 1
    check_settings: ClassVar[Mapping[str, Any]] = {}  # what conformance checks run with, where defaults take long

    class Config(PluginConfig):
        """Settings of the benchmark; override with a subclass."""

    def __init__(self, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        self.config: PluginConfig = parse_config(type(self).Config, config, "benchmark")

    @classmethod
    def missing(cls) -> str:
        """What has to be installed before it can score, in one line; empty if nothing."""
        return ""

    @abstractmethod
    def cells(self) -> Sequence[Cell]:
        """The cells that this benchmark is known for; others may work too."""

    @abstractmethod
    def score(self, synthetic: SyntheticSet, cell: Cell, context: ScoreContext) -> Scores:
        """Scores a set."""

    def references(self) -> Sequence[ReferenceScore]:
        """Published numbers; none by default."""
        return ()

    def export(self, synthetic: SyntheticSet, folder: Path) -> list[Path]:
        """Writes a set in the benchmark's own format."""
        raise UsageError(f"{type(self).__name__} has no format of its own to export {synthetic.name} to {folder}")

    def load(self, folder: Path, cell: Cell) -> SyntheticSet:
        """Reads a set in the benchmark's own format."""
        raise UsageError(f"{type(self).__name__} has no format of its own to load {cell} from {folder}")
