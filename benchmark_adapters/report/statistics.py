"""Means with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats


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
