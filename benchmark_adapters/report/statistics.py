"""Paired differences and corrections for several tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from dd_plugins.engine.score import Estimate


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its 95 % t-interval, and its p value (None for one pair, or without spread)."""

    estimate: Estimate
    p: float | None

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float]) -> Difference:
        """Of values that belong together pair by pair (paired t-test, two-sided)."""
        gaps = [value - other for value, other in zip(values, others, strict=True)]
        estimate = Estimate.of(gaps)
        if len(gaps) < 2:
            return cls(estimate, None)
        if max(gaps) - min(gaps) < 1e-9:  # no spread but rounding: there is nothing to test with
            return cls(estimate, None)
        return cls(estimate, float(stats.ttest_rel(values, others).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m p values times m - k + 1, never falling, at most 1.

    Source:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return adjusted
