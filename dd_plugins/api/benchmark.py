"""The abstract benchmark: whoever scores synthetic sets implements it, the native one like all others."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch

from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.api.real_data import RealData
from dd_plugins.api.synthetic import SyntheticSet
from dd_plugins.errors import DDPluginsError, UsageError


class BenchmarkFailed(DDPluginsError):
    """Another benchmark's own code failed."""


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
        network: What was trained; empty: the cell's architecture.
        metrics: Other numbers, one a trial each.
        extra: Whatever else the benchmark reports, for the record.
    """

    benchmark: str
    protocol: str
    protocol_hash: str
    metric: str
    trials: tuple[float, ...]
    network: str = ""
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
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
        folder: Where it may keep what lets an interrupted score go on; None: nowhere.
        full_accuracy: Accuracy of the whole training set among the run's yardsticks, a fraction; None: not known.
        full_source: Which yardstick that is, in words.
        full_hash: The hash of its protocol.
        protocol: How the set's run was scored, for a benchmark that follows it; None: not known.
    """

    real: RealData
    device: torch.device
    known: dict[int, float] = field(default_factory=dict)
    on_trial: Callable[[int, float], None] | None = None
    on_update: Callable[[int, int], None] | None = None
    folder: Path | None = None
    full_accuracy: float | None = None
    full_source: str = ""
    full_hash: str = ""
    protocol: Mapping[str, Any] | None = None


class Benchmark(ABC):
    """Scores synthetic sets; authors write :meth:`cells` and :meth:`score`."""

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    needs: ClassVar[str] = ""  # a module that it is no use without; the distribution has an extra of that name
    follows_protocol: ClassVar[bool] = False  # whether it scores by the protocol of the context
    check_settings: ClassVar[Mapping[str, Any]] = {}  # what conformance checks run with, where defaults take long

    class Config(PluginConfig):
        """Settings of the benchmark; override with a subclass."""

    def __init__(self, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        self.config: PluginConfig = parse_config(type(self).Config, config, "benchmark")

    def missing(self) -> bool:
        """Whether the module that it needs has to be installed first."""
        return bool(self.needs) and find_spec(self.needs) is None

    def key(self) -> str:
        """Ten hexadecimal digits of its class and settings: what tells its scores from others."""
        content = [f"{type(self).__module__}:{type(self).__qualname__}", self.config.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]

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
