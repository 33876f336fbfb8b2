"""Features of many images, and their means class by class: the tool that DM and CAFE share."""

from __future__ import annotations

import torch
from torch import Tensor

from dd_plugins.api import Network
from dd_plugins.matching.gradients import trains_batch_norm

CHUNK = 1024  # real images embedded at once where nothing binds them together


@torch.no_grad()
def embed_in_chunks(network: Network, images: Tensor) -> Tensor:
    """The features (float, ``(N, D)``) of ``images`` (float, ``(N, C, H, W)``), without a graph.

    In chunks, unless BatchNorm in training mode makes the whole batch one.
    """
    size = len(images) if trains_batch_norm(network) else CHUNK
    return torch.cat([network.embed(chunk) for chunk in torch.split(images, size)])


def class_means(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean features of every class.

    Args:
        features: Float, ``(N, ...)``.
        targets: int64, ``(N,)``.
        num_classes: C.

    Returns:
        Which classes have any image (bool, ``(C,)``), and the means (float, ``(C, ...)``; zero where there is none).
    """
    counts = torch.bincount(targets, minlength=num_classes)
    sums = features.new_zeros(num_classes, *features.shape[1:]).index_add(0, targets, features)
    shape = (-1, *[1] * (features.dim() - 1))
    return counts > 0, sums / counts.clamp(min=1).to(features.dtype).view(shape)
