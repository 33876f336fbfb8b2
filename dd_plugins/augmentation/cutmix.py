"""CutMix as dataset distillation uses it: one box for the whole batch.

Source:
    Yun et al., "CutMix", ICCV 2019, arXiv 1905.04899; with probability and Beta(1, 1) as in IDC (ICML 2022).
Deviations:
    None; kornia's RandomCutMixV2 draws a box an image, which is another recipe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional


@dataclass(frozen=True)
class CutMix:
    """A mixed batch: ``images`` with the labels of both sources and the ``share`` that the first one has left."""

    images: Tensor
    first: Tensor
    second: Tensor
    share: float

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """The mixed loss: scalar."""
        loss = functional.cross_entropy(logits, self.first)
        if self.share == 1:
            return loss
        return self.share * loss + (1 - self.share) * functional.cross_entropy(logits, self.second)


def cutmix(images: Tensor, targets: Tensor, probability: float, generator: Generator) -> CutMix:
    """With ``probability``, pastes a box of every image's partner into it.

    Args:
        images: Float, ``(B, C, H, W)``.
        targets: int64, ``(B,)``.
        probability: Between 0 and 1.
        generator: On the CPU.
    """
    if probability <= 0 or float(torch.rand((), generator=generator)) >= probability:
        return CutMix(images, targets, targets, 1.0)
    height, width = images.shape[2:]
    cut = math.sqrt(1 - float(torch.rand((), generator=generator)))  # Beta(1, 1) is uniform
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    top, bottom = _interval(height, cut, generator)
    left, right = _interval(width, cut, generator)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return CutMix(mixed, targets, targets[partner], share)


def _interval(size: int, share: float, generator: Generator) -> tuple[int, int]:
    centre = int(torch.randint(size, (), generator=generator))
    half = int(size * share) // 2
    return max(centre - half, 0), min(centre + half, size)
