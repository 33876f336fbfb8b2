"""Scores: trials of one set under one protocol, and their mean with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from dd_plugins.engine.display import table_html


@dataclass(frozen=True)
class Estimate:
    """A mean with the half width of its 95 % t-interval; the half width is None for a single value."""

    mean: float
    half_width: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of independent values, for example the accuracies of all trials."""
        n = len(values)
        if n < 2:
            return cls(fmean(values), None, n)
        quantile = float(stats.t.ppf(0.975, n - 1))
        return cls(fmean(values), quantile * stdev(values) / math.sqrt(n), n)

    def percent(self) -> str:
        """For tables: ``91.25 +- 0.61 (n=5)``, in percent."""
        spread = "" if self.half_width is None else f" +- {100 * self.half_width:.2f}"
        return f"{100 * self.mean:.2f}{spread} (n={self.n})"


@dataclass(frozen=True)
class Score:
    """How well networks that are trained on a set do on real images.

    Attributes:
        name: The set.
        trials: Accuracy of each trial, a fraction; trial k starts from the same weights for every set.
        protocol: The protocol's name.
        protocol_hash: Ten hexadecimal digits of everything in the protocol that decides a number.
        network: The architecture.
        split: ``test`` or ``validation``.
        seconds: Wall time.

    Example:
        >>> print(Score("dm", (0.475, 0.489, 0.481), "dsa", "0123456789", "convnet"))
        48.2 ± 1.7 (n=3)
    """

    name: str
    trials: tuple[float, ...]
    protocol: str
    protocol_hash: str
    network: str
    split: str = "test"
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean accuracy, a fraction."""
        return fmean(self.trials)

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the trials; None for a single trial."""
        return stdev(self.trials) if len(self.trials) > 1 else None

    @property
    def interval(self) -> float | None:
        """Half width of the 95 % t-interval of the mean; None for a single trial."""
        return Estimate.of(self.trials).half_width

    def __str__(self) -> str:
        """Mean and interval in percent: ``48.2 ± 0.6 (n=5)``."""
        half = "" if self.interval is None else f" ± {100 * self.interval:.1f}"
        return f"{100 * self.mean:.1f}{half} (n={len(self.trials)})"

    def __repr__(self) -> str:
        """The set, its score, and how it was measured."""
        return f"Score({self.name!r}: {self}, protocol {self.protocol}, {self.network}, {self.split})"

    def _repr_html_(self) -> str:
        """A table with one row a trial, for notebooks."""
        about = f"protocol {self.protocol} ({self.protocol_hash}), {self.network}, {self.split}"
        rows = {"accuracy": f"{self} %", "evaluated by": about}
        rows |= {f"trial {number}": f"{100 * value:.2f} %" for number, value in enumerate(self.trials)}
        return table_html(self.name, rows)
