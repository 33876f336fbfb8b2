"""What all networks here have in common: features, flattened, and one linear layer on top."""

from __future__ import annotations

from torch import Tensor, nn

from dd_plugins.api.network import Network


class FeatureClassifier(Network):
    """Base of networks that set ``self.features`` and ``self.classifier`` in their constructor."""

    features: nn.Module
    classifier: nn.Linear

    def embed(self, images: Tensor) -> Tensor:
        """The flattened features, float, ``(N, D)``, of ``images``, float, ``(N, C, H, W)``, model space."""
        features: Tensor = self.features(images)
        return features.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """The logits, float, ``(N, classes)``, of ``images``, float, ``(N, C, H, W)``, model space."""
        logits: Tensor = self.classifier(self.embed(images))
        return logits
