"""The native benchmark: this project's own evaluator as an implementation of the abstract one."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark_adapters.base import Benchmark, Cell, ScoreContext, Scores
from benchmark_adapters.evaluator import Protocol, evaluate, load_protocol
from dd_plugins.api import SyntheticSet


class NativeBenchmark(Benchmark):
    """Test accuracy of fresh networks trained on the set, under one frozen protocol for all methods."""

    def __init__(self, protocol: Protocol | None = None) -> None:
        self.protocol = protocol or load_protocol("dsa")

    def cells(self) -> Sequence[Cell]:
        """The cells of the field's main tables."""
        sets = ("mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet")
        return [Cell(name, ipc, self.protocol.network.name) for name in sets for ipc in (1, 10, 50)]

    def score(self, synthetic: SyntheticSet, cell: Cell, context: ScoreContext) -> Scores:
        """Accuracy of every trial."""
        trials = evaluate(synthetic, self.protocol, cell, context)
        return Scores("native", self.protocol.name, self.protocol.hash, "accuracy", trials)
