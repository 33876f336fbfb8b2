"""The contract of a network plugin: any ``nn.Module`` class that is built from an image shape and a class count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.errors import IncompatibleError


class Network(nn.Module):
    """Base of the classifiers: images (float, ``(N, C, H, W)``, model space) to logits (float, ``(N, classes)``).

    Authors call ``super().__init__`` and build layers from ``image_shape``, ``num_classes`` and ``self.config``;
    weights may be drawn from torch's global generator, which the registry seeds and restores around construction.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    check_settings: ClassVar[Mapping[str, Any]] = {}  # what conformance checks run with, where defaults take long

    class Config(PluginConfig):
        """Settings of the network; override with a subclass."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        config: PluginConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.image_shape, self.num_classes = image_shape, num_classes
        self.config: PluginConfig = parse_config(type(self).Config, config, "network")

    def embed(self, images: Tensor) -> Tensor:
        """The features before the classifier: float, ``(N, D)``; a network may have none."""
        raise IncompatibleError(f"{type(self).__name__} has no features to embed images in")

    def taps(self, images: Tensor) -> list[Tensor]:
        """Maps (float, ``(N, c, h, w)``) at several depths; a network may have none."""
        raise IncompatibleError(f"{type(self).__name__} has no maps at several depths; convnet has")
