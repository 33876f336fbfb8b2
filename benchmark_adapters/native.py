"""The native benchmark: this project's own evaluator as an implementation of the abstract one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from benchmark_adapters.base import Benchmark, Cell, ScoreContext, Scores
from benchmark_adapters.evaluator import Protocol, evaluate, load_protocol
from dd_plugins.api import PluginConfig, SyntheticSet


class NativeBenchmark(Benchmark):
    """Test accuracy of fresh networks trained on the set, under one frozen protocol for all methods."""

    check_settings: ClassVar[Mapping[str, Any]] = {
        "protocol": {
            "name": "tiny",
            "network": {"name": "convnet", "width": 4},
            "train": {"epochs": 2, "batch_size": 4},
            "trials": 2,
        }
    }

    class Config(PluginConfig):
        """Settings of the native benchmark."""

        protocol: Protocol | None = Field(None, description="how sets are scored; None: dsa")

    config: Config

    def __init__(self, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(config)
        self.protocol = self.config.protocol or load_protocol("dsa")

    def cells(self) -> Sequence[Cell]:
        """The cells of the field's main tables."""
        sets = ("mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet")
        return [Cell(name, ipc, self.protocol.network.name) for name in sets for ipc in (1, 10, 50)]

    def score(self, synthetic: SyntheticSet, cell: Cell, context: ScoreContext) -> Scores:
        """Accuracy of every trial."""
        trials = evaluate(synthetic, self.protocol, cell, context)
        return Scores("native", self.protocol.name, self.protocol.hash, "accuracy", trials)
