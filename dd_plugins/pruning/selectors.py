"""Selectors: which images of a class to keep, given how easy each of them is.

Source:
    double-end: Zheng et al., "Leveraging Hierarchical Feature Sharing for Efficient Dataset Condensation", ECCV 2024:
    of k images to be removed floor(beta k) are the hardest and the others the easiest.
    stratified: Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates", ICLR 2023, Algorithm 1.
Deviations:
    Everything is done class by class, so that classes stay balanced; the published code of ``stratified`` draws from
    all classes together and cuts by the margin whatever the score. Its hard cut is ``floor(beta k)`` here too.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Generator, Tensor

from dd_plugins.api import PluginContractError, UsageError
from dd_plugins.api.pruning import Selector
from dd_plugins.errors import EmptyClassError

STRATA = 50  # bins of equal width over the range of the scores


def share(beta: float, count: int) -> int:
    """``floor(beta * count)`` in exact decimals: 0.29 of 100 is 29, which floats would make 28."""
    return int(Fraction(str(beta)) * count)


def order(ease: Tensor) -> Tensor:
    """Rows from hard to easy, ties by row: int64, ``(n,)``."""
    return torch.argsort(ease, stable=True)


class DoubleEnd(Selector):
    """Removes the ``floor(beta k)`` hardest and the ``k - floor(beta k)`` easiest of k images to remove."""

    api_version = 2
    uses_beta = True

    def select(self, ease: Tensor, keep: int, beta: float, generator: Generator) -> Tensor:
        """The rows in the middle."""
        del generator
        hardest = share(beta, len(ease) - keep)
        return order(ease)[hardest : hardest + keep]


class KeepEasy(Selector):
    """Removes the hardest images; double-end with beta 1."""

    api_version = 2

    def select(self, ease: Tensor, keep: int, beta: float, generator: Generator) -> Tensor:
        """The easiest rows."""
        del beta, generator
        return order(ease)[len(ease) - keep :]


class KeepHard(Selector):
    """Removes the easiest images; double-end with beta 0."""

    api_version = 2

    def select(self, ease: Tensor, keep: int, beta: float, generator: Generator) -> Tensor:
        """The hardest rows."""
        del beta, generator
        return order(ease)[:keep]


class Stratified(Selector):
    """Removes the ``floor(beta k)`` hardest, then draws evenly from bins of equal width, the smallest bins first."""

    api_version = 2
    uses_beta = True

    def select(self, ease: Tensor, keep: int, beta: float, generator: Generator) -> Tensor:
        """Rows of all bins."""
        left = order(ease)[share(beta, len(ease) - keep) :]
        low, high = ease[left].min(), ease[left].max()
        width = (high - low).clamp(min=torch.finfo(ease.dtype).tiny)
        numbers = ((ease[left] - low) / width * STRATA).long().clamp(max=STRATA - 1)  # the last bin has the top edge
        bins = [left[numbers == number] for number in numbers.unique().tolist()]
        chosen: list[Tensor] = []
        for position, members in enumerate(sorted(bins, key=len)):
            room = (keep - sum(map(len, chosen))) // (len(bins) - position)
            drawn = torch.randperm(len(members), generator=generator)[:room]
            chosen.append(members[drawn.to(members.device)])
        return torch.cat(chosen)


class Top(KeepEasy):
    """Keeps the images with the largest scores, whether these mean easy or hard images."""

    api_version = 2
    takes_ease = False


def shares(counts: Tensor, keep: int) -> list[int]:
    """How many images each class keeps: in proportion to what it has, the largest remainders rounded up.

    Args:
        counts: int64, ``(classes,)``.
        keep: In all.

    Raises:
        UsageError: If there are not so many images.
        EmptyClassError: If a class would be left with none.
    """
    total = int(counts.sum())
    if not 0 < keep <= total:
        raise UsageError(f"{keep} images to keep, but there are {total}")
    exact = [Fraction(int(count) * keep, total) for count in counts]
    kept = [int(part) for part in exact]
    by_remainder = sorted(range(len(kept)), key=lambda label: (kept[label] - exact[label], label))
    for label in by_remainder[: keep - sum(kept)]:
        kept[label] += 1
    if min(kept) < 1:
        raise EmptyClassError(keep, total, kept.index(0))
    return kept


def select(
    selector: Selector, ease: Tensor, targets: Tensor, keep: int, beta: float, generator: Generator, num_classes: int
) -> Tensor:
    """The images to keep, class by class.

    Args:
        selector: Selects within a class.
        ease: Float, ``(N,)``: large for easy images.
        targets: int64, ``(N,)``.
        keep: How many in all.
        beta: Share of the removed images that are removed at the hard end.
        generator: For selectors that draw, on the CPU.
        num_classes: Classes, each of which keeps one image at least.

    Returns:
        int64, ``(keep,)``, ascending.

    Raises:
        UsageError: If a score is NaN, or a class would keep no image.
        PluginContractError: If the selector does not return as many different rows as required.
    """
    if not bool(torch.isfinite(ease).all()):
        raise UsageError(f"{int((~torch.isfinite(ease)).sum())} of {len(ease)} scores are NaN or infinite")
    kept = []
    for label, count in enumerate(shares(torch.bincount(targets, minlength=num_classes), keep)):
        rows = torch.nonzero(targets == label).flatten()
        chosen = selector.select(ease[rows], count, beta, generator)
        if (
            len(chosen.unique()) != count
            or len(chosen) != count
            or not bool(((chosen >= 0) & (chosen < len(rows))).all())
        ):
            who = type(selector).__name__
            raise PluginContractError(f"{who}.select: expected {count} different rows of {len(rows)}")
        kept.append(rows[chosen])
    return torch.cat(kept).sort().values
