"""One step of class-wise gradient matching; subclasses decide which network it is done on."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor, nn

from dd_plugins.api import Match, MatchingObjective, PluginConfig
from dd_plugins.augmentation import Augmentation
from dd_plugins.matching.gradients import Metric, Strategy, class_gradients, match_classes


class GradientMatchingConfig(PluginConfig):
    """Settings of class-wise gradient matching."""

    batch_real: int = Field(256, ge=1, description="real images of each class a step")
    classes_at_once: int = Field(10, ge=1, description="classes whose graphs are held together on a GPU")
    class_strategy: Strategy = Field("auto", description="loop over classes or vmap them; auto: vmap on a GPU")


class GradientMatching(MatchingObjective):
    """Sum over classes of the distance between real and synthetic gradients on one network.

    Attributes:
        metric: The distance.
        augmentation: Drawn once a class and step, applied to real and synthetic images alike (siamese).
    """

    class Config(GradientMatchingConfig):
        """Settings of class-wise gradient matching."""

    config: GradientMatchingConfig
    metric: Metric
    augmentation: Augmentation

    @abstractmethod
    def network_for(self, images: Tensor, targets: Tensor, step: int) -> nn.Module:
        """The network of this step, trained as far as the method wants it."""

    def match(self, images: Tensor, targets: Tensor, step: int) -> Match:
        """The loss of all classes, and its gradient; one class, or a few on a GPU, hold their graph at a time."""
        network = self.network_for(images, targets, step)
        real_rows = self.real.train.per_class(self.config.batch_real, self.context.generator)
        draw = self.augmentation.draw(self.data.num_classes, self.context.generator, one_choice=False)

        def augment(batch: Tensor, labels: Tensor) -> Tensor:
            return self.augmentation(batch, draw, labels)

        positions = [torch.nonzero(targets == label).flatten() for label in range(self.data.num_classes)]
        labels = [label for label, rows in enumerate(positions) if len(rows)]
        size = self.config.classes_at_once if images.is_cuda else 1
        total, image_grad = torch.zeros((), device=images.device), torch.zeros_like(images)
        for group in (labels[k : k + size] for k in range(0, len(labels), size)):
            real = [augment(self.real.train.images(real_rows[c]), torch.full((real_rows.shape[1],), c)) for c in group]
            strategy = self.config.class_strategy
            expected = class_gradients(network, group, real, self.metric, strategy)
            batches = [images[positions[label]] for label in group]
            loss, grads = match_classes(network, group, expected, batches, augment, self.metric, strategy)
            total = total + loss
            for label, grad in zip(group, grads, strict=True):
                image_grad[positions[label]] = grad
        return Match(total, image_grad)
