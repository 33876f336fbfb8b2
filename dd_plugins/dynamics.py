"""Training dynamics: scores of images, computed while networks are trained on all of them.

Deviations:
    Images are scored in one clean pass after every epoch, not in the augmented batches of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

from dd_plugins.api import DataSpec, Network
from dd_plugins.api.pruning import Score
from dd_plugins.training import TrainConfig, train_networks

CHUNK = 512  # images of a clean pass at once


def observe_training(
    scores: Mapping[str, Score],
    networks: Sequence[Network],
    images: Tensor,
    targets: Tensor,
    config: TrainConfig,
    data: DataSpec,
    *,
    seeds: Sequence[int],
    generator: Generator,
    on_update: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Trains networks on all images and computes scores of the images.

    The training ends early if no score observes later epochs.

    Args:
        scores: By name.
        networks: Fresh ones of one architecture; trained in place.
        images: Float, ``(N, C, H, W)``, model space.
        targets: int64, ``(N,)``.
        config: The training.
        data: For the default augmentation.
        seeds: One for each network.
        generator: For scores that draw.
        on_update: Called with (updates done, updates in all).

    Returns:
        For each score a float tensor, ``(N,)``.

    Raises:
        IncompatibleError: If a score needs features and the networks have none, before they are trained.
    """
    for score in scores.values():
        score.start(networks, images, targets, generator)
    observed = [score.epochs for score in scores.values()]
    last = None if None in observed else max((count for count in observed if count), default=0)

    def after_epoch(number: int, network: torch.nn.Module, epoch: int) -> bool:
        network.eval()
        with torch.no_grad():
            logits = torch.cat([network(chunk) for chunk in torch.split(images, CHUNK)])
        for score in scores.values():
            score.update(number, logits)
        return epoch == last

    if last != 0:
        train_networks(networks, images, targets, config, data, seeds=seeds, on_update=on_update, on_epoch=after_epoch)
    return {name: score.compute() for name, score in scores.items()}


@torch.no_grad()
def features(network: Network, images: Tensor) -> Tensor:
    """Features in evaluation mode: float, ``(N, D)``.

    Raises:
        IncompatibleError: If the network has none.
    """
    network.eval()
    return torch.cat([network.embed(chunk) for chunk in torch.split(images, CHUNK)])
