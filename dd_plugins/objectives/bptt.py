"""RTP's objective: back-propagation through a whole training on the synthetic images, momentum included.

Source:
    Deng & Russakovsky, "Remember the Past: Distilling Datasets into Addressable Memories for Neural Networks",
    NeurIPS 2022, arXiv 2206.02916, Algorithm 1, and its released code.
Deviations:
    The reverse pass builds one step's graph at a time and keeps the weights on the device. The code's regulariser of
    the coefficients has no effect there (it is dropped by the differentiation) and is left out.
    A class with fewer training images than ``batch_real`` gives all of them and repeats some to fill the batch
    (`Split.per_class`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dd_plugins.api import Context, DataSpec, Match, MatchingObjective, PluginConfig, RealData
from dd_plugins.augmentation import Augmentation
from dd_plugins.trajectories import Batch, FlatNetwork, pull_back, train_on


class BPTT(MatchingObjective):
    """The loss on real images of a fresh network that was trained on synthetic ones."""

    api_version = 2
    check_settings: ClassVar[Mapping[str, Any]] = {"unroll": 3, "batch_syn": 2, "batch_real": 4}

    class Config(PluginConfig):
        """Settings of back-propagation through time."""

        unroll: int = Field(150, ge=1, description="SGD steps on synthetic images, T")
        batch_syn: int = Field(32, ge=1, description="synthetic images of each class a step, at most")
        batch_real: int = Field(64, ge=1, description="real images of each class behind the last step")
        classes: int | None = Field(None, ge=2, description="classes drawn for each step of the images; None: all")
        network_lr: float = Field(0.01, gt=0, description="learning rate of the SGD steps")
        network_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the SGD steps")
        strategy: str = Field("none", description="siamese DSA, one draw for all steps and the real images")

    config: Config

    def __init__(self, data: DataSpec, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(data, config)
        self.augmentation = Augmentation.dsa(self.config.strategy)

    def prepare(self, real: RealData, targets: Tensor, context: Context) -> None:
        """Sorts the images by class."""
        super().prepare(real, targets, context)
        self.members = [torch.nonzero(targets.cpu() == label).flatten() for label in range(self.data.num_classes)]

    def working_bytes(self, network_bytes: int) -> int:
        """The weights after every step, and the real images."""
        classes = min(self.config.classes or self.data.num_classes, self.data.num_classes)
        return self.config.unroll * network_bytes + classes * self.config.batch_real * self.data.image_bytes

    def match(self, images: Tensor, targets: Tensor, step: int) -> Match:
        """One training of a fresh network, and the gradient through all of it."""
        del step
        config, generator = self.config, self.context.generator
        classes = torch.randperm(self.data.num_classes, generator=generator)[: config.classes].sort().values
        made = self.context.make_network(self.context.draw_seed()).train()
        network = FlatNetwork(made)
        draw = self.augmentation.draw(1, generator)
        batches = []
        for _ in range(config.unroll):
            rows = torch.cat([self._some(self.members[label]) for label in classes.tolist()]).to(images.device)
            batches.append(Batch(rows, targets[rows], lambda batch: self.augmentation(batch, draw)))
        trajectory = train_on(network, network.weights(), images, batches, config.network_lr, config.network_momentum)
        rows = self.real.train.per_class(config.batch_real, generator)[classes].flatten()
        theta = trajectory.last.requires_grad_()
        logits = network(theta, self.augmentation(self.real.train.images(rows), draw))
        loss = functional.cross_entropy(logits, self.real.train.labels[rows])
        (last_grad,) = torch.autograd.grad(loss, theta)
        image_grad, _ = pull_back(network, trajectory, images, batches, last_grad)
        return Match(loss.detach(), image_grad)

    def diagnosis(self) -> str:
        """The learning rates that a training through all steps depends on."""
        return f"a smaller optimizer.lr, or an objective.network_lr below {self.config.network_lr:g}, may help"

    def state_dict(self) -> dict[str, Tensor]:
        """The generator."""
        return {"generator": self.context.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` returned."""
        self.context.generator.set_state(state["generator"])

    def _some(self, members: Tensor) -> Tensor:
        order = torch.randperm(len(members), generator=self.context.generator)
        return members[order[: self.config.batch_syn]]
