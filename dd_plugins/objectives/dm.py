"""DM: distribution matching, mean features of real and synthetic images under networks that are never trained.

Source:
    Zhao & Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, arXiv 2110.04181, Eq. 4, and its code.
Deviations:
    One forward pass over all classes at once, with class means behind it: the same for networks without BatchNorm, and
    the code's own way for networks with it.
    A class with fewer training images than ``batch_real`` gives all of them and repeats some to fill the batch
    (`Split.per_class`); the code's batch is then smaller. The means of both are equal where every image appears
    equally often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dd_plugins.api import DataSpec, DifferentiableObjective, Network, PluginConfig
from dd_plugins.augmentation import Augmentation, default_strategy
from dd_plugins.matching import class_means, embed_in_chunks


class DM(DifferentiableObjective):
    """Sum over classes of the squared distance between mean features; a fresh random network every step."""

    api_version = 2
    check_settings: ClassVar[Mapping[str, Any]] = {"batch_real": 4}

    class Config(PluginConfig):
        """Settings of distribution matching."""

        batch_real: int = Field(256, ge=1, description="real images of each class a step")
        strategy: str = Field("auto", description="siamese DSA; auto: the field's for the data set; none: off")

    config: Config

    def __init__(self, data: DataSpec, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(data, config)
        strategy = default_strategy(data) if self.config.strategy == "auto" else self.config.strategy
        self.augmentation = Augmentation.dsa(strategy)

    def check(self, targets: Tensor, groups: Tensor | None, network: Network) -> None:
        """The network must have features to embed images in."""
        with torch.no_grad():
            network.embed(torch.zeros(2, *self.data.image_shape))

    def working_bytes(self, network_bytes: int) -> int:
        """The real images of a step, all classes together."""
        del network_bytes
        return self.data.num_classes * self.config.batch_real * self.data.image_bytes

    def loss(self, images: Tensor, targets: Tensor, step: int) -> Tensor:
        """Sum over classes of ``|| mean psi(A(real)) - mean psi(A(synthetic)) ||^2``, with one draw of A a class."""
        del step
        generator, classes = self.context.generator, self.data.num_classes
        network = self.context.make_network(self.context.draw_seed()).requires_grad_(False)
        rows = self.real.train.per_class(self.config.batch_real, generator)
        draw = self.augmentation.draw(classes, generator, one_choice=False)
        labels = torch.arange(classes).repeat_interleave(rows.shape[1])
        real = self.augmentation(self.real.train.images(rows.flatten()), draw, labels)
        expected = embed_in_chunks(network, real).view(classes, rows.shape[1], -1).mean(1)
        synthetic = network.embed(self.augmentation(images, draw, targets.cpu()))
        present, means = class_means(synthetic, targets, classes)
        return (means - expected)[present].square().sum()

    def state_dict(self) -> dict[str, Tensor]:
        """The generator."""
        return {"generator": self.context.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` returned."""
        self.context.generator.set_state(state["generator"])
