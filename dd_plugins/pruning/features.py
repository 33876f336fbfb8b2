"""Scores from the features of trained networks.

Source:
    herding: Welling, ICML 2009, in feature space. k-center: Sener & Savarese, "Active Learning for Convolutional
    Neural Networks: A Core-Set Approach", ICLR 2018, Algorithm 1 (greedy).
Deviations:
    ``k-center`` works class by class and starts from the image nearest to the class mean, where the paper starts from
    the labelled pool of active learning; features are normalised to length 1, and several networks' are joined.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dd_plugins.api import Network
from dd_plugins.api.pruning import Score
from dd_plugins.dynamics import features


class FeatureScore(Score):
    """Base of scores from features; refuses networks without features before they are trained."""

    def start(self, networks: Sequence[Network], images: Tensor, targets: Tensor, generator: Generator) -> None:
        """Checks that there are features."""
        super().start(networks, images, targets, generator)
        features(networks[0], images[:2])


class HerdingScore(FeatureScore):
    """How early greedy herding selects an image: the mean of the selected ones approximates that of the class."""

    api_version = 2

    def compute(self) -> Tensor:
        """float64, ``(N,)``, averaged over the networks."""
        return torch.stack([herding(features(n, self.images), self.targets) for n in self.networks]).mean(0)


class KCenterScore(FeatureScore):
    """How early greedy k-center selects an image: each next one is the farthest from those selected before."""

    api_version = 2

    def compute(self) -> Tensor:
        """float64, ``(N,)``."""
        return k_center([features(network, self.images) for network in self.networks], self.targets)


def herding(found: Tensor, targets: Tensor) -> Tensor:
    """How early greedy herding selects each image of its class: the first has the largest score.

    In every class the next image is the one that brings the mean of those selected closest to the mean of all.

    Args:
        found: Features, float ``(N, D)``; normalised to length 1 here.
        targets: int64, ``(N,)``.

    Returns:
        float64, ``(N,)``: the number of images of the class that are selected later.
    """
    score = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    for label in targets.unique().tolist():
        rows = torch.nonzero(targets == label).flatten()
        own = functional.normalize(found[rows].double())
        lengths, to_goal, to_selected = own.square().sum(1), own @ own.mean(0), torch.zeros_like(own[:, 0])
        free = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for count in range(1, len(rows) + 1):
            # count^2 || goal - (selected + x) / count ||^2, without what is the same for every x
            gaps = lengths + 2 * (to_selected - count * to_goal)
            best = int(gaps.masked_fill(~free, float("inf")).argmin())
            free[best] = False
            to_selected += own @ own[best]
            score[rows[best]] = len(rows) - count
    return score


def k_center(found: Sequence[Tensor], targets: Tensor) -> Tensor:
    """How early greedy k-center selects each image of its class: the first has the largest score.

    The first center of a class is the image nearest to the mean of its features; each next one is the image farthest
    from its nearest center. Equal distances go to the lowest index. Memory is one distance an image.

    Args:
        found: Features of each network, float ``(N, D)``; normalised to length 1 here. Squared distances are summed
            over the networks.
        targets: int64, ``(N,)``.

    Returns:
        float64, ``(N,)``: the number of images of the class that are selected later.
    """
    score = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    for label in targets.unique().tolist():
        rows = torch.nonzero(targets == label).flatten()
        own = torch.cat([functional.normalize(part[rows].double()) for part in found], dim=1)
        center = int(_distances(own, own.mean(0)).argmin())
        nearest = torch.full((len(rows),), float("inf"), dtype=torch.float64, device=rows.device)
        for left in range(len(rows) - 1, -1, -1):
            score[rows[center]] = left
            nearest = torch.minimum(nearest, _distances(own, own[center]))
            nearest[center] = -1  # selected: below the distance of every image that is left
            center = int(nearest.argmax())
    return score


def _distances(points: Tensor, center: Tensor) -> Tensor:
    """Euclidean distances to one point, float ``(n,)``; exactly 0 for equal points, as no dot product gives them."""
    return torch.cdist(points, center[None], compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)
