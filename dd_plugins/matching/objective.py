"""One step of class-wise gradient matching; subclasses decide which network it is done on."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor, nn

from dd_plugins.api import Match, MatchingObjective, PluginConfig
from dd_plugins.augmentation import Augmentation
from dd_plugins.execution import parallel_map
from dd_plugins.matching.gradients import Metric, Strategy, class_gradients, match_classes, trains_batch_norm


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

    def working_bytes(self, network_bytes: int) -> int:
        """Rows of the real images of all classes, and those images of one class."""
        del network_bytes
        rows = self.data.num_classes * self.config.batch_real * torch.int64.itemsize
        return rows + self.config.batch_real * self.data.image_bytes

    def match(self, images: Tensor, targets: Tensor, step: int) -> Match:
        """The loss of all classes, and its gradient; a class a thread, or a few on a GPU, hold their graph."""
        network = self.network_for(images, targets, step)
        real_rows = self.real.train.per_class(self.config.batch_real, self.context.generator)
        draw = self.augmentation.draw(self.data.num_classes, self.context.generator, one_choice=False)

        def augment(batch: Tensor, labels: Tensor) -> Tensor:
            return self.augmentation(batch, draw, labels)

        rows = [torch.nonzero(targets == label).flatten() for label in range(self.data.num_classes)]
        labels = [label for label, own in enumerate(rows) if len(own)]
        size = self.config.classes_at_once if images.is_cuda else 1
        groups = [labels[k : k + size] for k in range(0, len(labels), size)]
        strategy = self.config.class_strategy

        def match_group(group: list[int]) -> tuple[Tensor, list[Tensor]]:
            real = [augment(self.real.train.images(real_rows[c]), torch.full((real_rows.shape[1],), c)) for c in group]
            expected = class_gradients(network, group, real, self.metric, strategy)
            batches = [images[rows[label]] for label in group]
            return match_classes(network, group, expected, batches, augment, self.metric, strategy)

        # Running statistics that are updated in place would depend on the order of the threads.
        apart = not images.is_cuda and not trains_batch_norm(network)
        matched = parallel_map(match_group, groups, parallel=apart)
        total, image_grad = torch.zeros((), device=images.device), torch.zeros_like(images)
        for group, (loss, grads) in zip(groups, matched, strict=True):
            total = total + loss
            for label, grad in zip(group, grads, strict=True):
                image_grad[rows[label]] = grad
        return Match(total, image_grad)
