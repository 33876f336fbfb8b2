"""LeNet, as cross-architecture tables use it: two convolutions with max-pools, three linear layers, no norm.

Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proc. IEEE 1998, with ReLU and max-pools as in B. Zhao, K. R. Mopuri and H. Bilen, "Dataset Condensation with Gradient
Matching", ICLR 2021 (arXiv 2006.05929).

Deviations:
    - Any channel count and image size: the last map is average-pooled to the 5x5 that 32x32 images give (8x8 digits:
      repeated up to it), convolutions are padded where the map is smaller than their kernel, and a max-pool is left out
      where less than a pixel would remain. At 3x32x32 and 1x28x28 (padded by 2) the network is the original one.
    - Activations are out of place; values are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from dd_plugins.api.network import Network
from dd_plugins.networks import GREY_28
from dd_plugins.networks.classifier import FeatureClassifier

KERNEL = 5
LAST_MAP = (5, 5)


class LeNet(FeatureClassifier):
    """LeNet; 62,006 parameters at 3x32x32 and 10 classes."""

    api_version = 2

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: Network.Config | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape, num_classes, config)
        channels, *side = image_shape
        padding = KERNEL // 2 if tuple(image_shape) == GREY_28 else 0
        layers: list[nn.Module] = []
        for out_channels in (6, 16):
            padding = padding or (KERNEL // 2 if min(side) < KERNEL else 0)
            layers += [nn.Conv2d(channels, out_channels, KERNEL, padding=padding), nn.ReLU()]
            side = [length + 2 * padding - KERNEL + 1 for length in side]
            if min(side) >= 2:
                layers.append(nn.MaxPool2d(2))
                side = [length // 2 for length in side]
            channels, padding = out_channels, 0
        if tuple(side) != LAST_MAP:  # where it would change nothing it is left out: on a GPU it is not deterministic
            layers.append(nn.AdaptiveAvgPool2d(LAST_MAP))
        layers += [nn.Flatten(), nn.Linear(channels * LAST_MAP[0] * LAST_MAP[1], 120), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Linear(120, 84), nn.ReLU())
        self.classifier = nn.Linear(84, num_classes)
